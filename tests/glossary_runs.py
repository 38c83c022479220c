"""Teach each glossary of `data/glossaries`, and ask what a person asks about it: OUT/LM.json, one row each.

    python tests/glossary_runs.py [--lm smollm2] [--minutes 6] [--out outputs/glossaries] [GLOSSARY ...]

A glossary whose row is there is left out, so an interrupted run continues. Settings were chosen on those of
`DEV`. `--table` prints what is there, as docs/pages/teach.md has it."""
import argparse, json, time
from pathlib import Path

from kdnb import load_lm, teach
from kdnb.apps.ask import load_taught
from kdnb.apps.versions import summary
from kdnb.core.files import make_folder, write_json
from kdnb.core.process import machine
from kdnb.core.stats import interval
from kdnb.core.text import contains_phrase
from kdnb.data.definitions import read_definitions
from kdnb.evaluation.asking import ask
from kdnb.experiments.identity import code_version
from kdnb.models.memory import has_fast_bfloat16
from test_glossaries import FOLDER, GLOSSARIES, questions_of


def answered(questions, texts):
    "What was written, and whether a person would take it."
    def right(q, text): return any(contains_phrase(text, a) for a in q['answers'])
    return [dict(kind=q['kind'], question=q['text'], answer=t, right=right(q, t))
            for q, t in zip(questions, texts, strict=True)]


def run(lm, name, folder, minutes):
    "The row of a glossary."
    entities, questions = read_definitions(FOLDER/f'{name}.md'), questions_of(name)
    start = time.perf_counter()
    teach(lm, entities, folder, minutes=minutes)
    seconds, texts = time.perf_counter() - start, [q['text'] for q in questions]
    definition = {e.name: e.definition for e in entities}
    with_definition = ask(lm, texts, [definition[q['entity']] for q in questions])
    taught, after = load_taught(folder, lm=lm.name), []
    with taught.edit.on(taught.lm): after = ask(taught.lm, texts)
    found = {k: v for k, v in summary(folder).items() if k != 'seconds'}
    people = {'before': ask(lm, texts), 'with_definition': with_definition, 'after': after}
    return dict(glossary=name, lm=lm.name, code=code_version(), machine=machine(),
                bfloat16=has_fast_bfloat16(lm.device), minutes=round(seconds/60, 1), exam=found,
                people={k: answered(questions, t) for k, t in people.items()})


DEV = ('company', 'ward')
COLUMNS = ('glossary', 'facts known', 'questions and clozes right', "a person's questions right",
           'the same with the definition', 'well-known things lost', 'KL', 'minutes')


def counts(row):
    "The numbers of a row that can be added."
    found, people = row['exam'], {k: sum(a['right'] for a in v) for k, v in row['people'].items()}
    return dict(known=found['facts_known'], facts=found['facts'], after=found['after'],
                asked=found['questions'], people=people['after'], with_definition=people['with_definition'],
                n_people=len(row['people']['after']), lost=found['lost'], well_known=found['known'])


def line(name, c, kl='', minutes=''):
    "A line of the table."
    def of(k, n): return f'{c[k]} of {c[n]}'
    cells = (name, of('known', 'facts'), of('after', 'asked'), of('people', 'n_people'),
             of('with_definition', 'n_people'), of('lost', 'well_known'), kl, minutes)
    return '| ' + ' | '.join(str(cell) for cell in cells) + ' |'


def table(rows):
    "The rows in Markdown, with sums of those on which settings were chosen and of the others."
    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|---'*len(COLUMNS) + '|']
    for what, part in (('settings were chosen here', [r for r in rows if r['glossary'] in DEV]),
                       ('all others', [r for r in rows if r['glossary'] not in DEV])):
        lines += [line(r['glossary'], counts(r), f"{r['exam']['kl']:.3f}", r['minutes']) for r in part]
        total = {k: sum(counts(r)[k] for r in part) for k in counts(part[0])}
        known = [100.]*total['known'] + [0.]*(total['facts'] - total['known'])
        share = interval(known, range(len(known)))
        lines.append(line(f'**{what}: {share} percent of the facts**', total))
    return '\n'.join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('glossaries', nargs='*', default=[*GLOSSARIES])
    p.add_argument('--lm', default='smollm2')
    p.add_argument('--minutes', type=float, default=6)
    p.add_argument('--out', default='outputs/glossaries')
    p.add_argument('--runs', default='runs/glossaries')
    p.add_argument('--accept-terms', action='store_true')
    p.add_argument('--table', action='store_true')
    args = p.parse_args()
    if args.table: return print(table(json.loads((Path(args.out)/f'{Path(args.lm).stem}.json').read_text())))
    lm = load_lm(args.lm, accept_terms=args.accept_terms)
    path = make_folder(args.out)/f'{Path(args.lm).stem}.json'
    rows = json.loads(path.read_text()) if path.exists() else []
    for name in args.glossaries:
        if name in [r['glossary'] for r in rows]: continue
        rows.append(run(lm, name, Path(args.runs)/f'{Path(args.lm).stem}-{name}', args.minutes))
        write_json(path, rows)
        print(name, rows[-1]['exam']['sentence'],
              {k: sum(a['right'] for a in v) for k, v in rows[-1]['people'].items()}, flush=True)


if __name__ == '__main__': main()
