"""Pages that are made of results: the gallery of the reports, and the claims with what was found."""
import json, shutil
from pathlib import Path

from kdnb.core.display import escape_markdown as md
from kdnb.reporting.claims import WORDINGS, read_claims
from kdnb.reporting.jobs import about
from kdnb.reporting.runner import report_paths
from notebooks import anchor

HERE = Path(__file__).resolve().parent


def page_name(r): return f"{r['report']}-{r['label']}"

def link(r): return f"[{md(r['label'])}](/reports/{page_name(r)}.ipynb)"

def figure(r, to=''):
    "The headline figure of a run, in the folder `to`, whose caption and picture lead to the run."
    alt = f"{about(r['report'])[0]}, {r['label']}: {r['figures'][0].stem}"
    target = f'../reports/{page_name(r)}.html'
    return [f':::{{figure}} {to}{page_name(r)}.png', f':alt: {alt}', f':target: {target}', '', link(r), ':::']

def copy_figures(found, folder):
    "The headline figure of each run, as REPORT-LABEL.png."
    for r in found:
        if r['figures']: shutil.copy(r['figures'][0], folder/f'{page_name(r)}.png')

SUBJECTS = {'reports': 'First steps', 'benchmarks': 'Benchmarks', 'methods': 'Methods', 'scaling': 'Scaling',
            'data': 'Data'} # folder of report notebooks -> heading

def gallery_section(name, runs):
    "The runs of a report, with their headline figures."
    title, what = about(name)
    figures = [figure(r) if r['figures'] else [link(r)] for r in runs]
    lines = [l for f in figures for l in f]
    return [f'### {title}', '', what, '', '::::{container} gallery', *lines, '::::', '']

def gallery(found):
    "All results by subject, with their headline figures."
    lines = ['# Reports', '', (HERE/'pages'/'gallery_head.txt').read_text(encoding='utf-8'), '']
    names, paths = dict.fromkeys(r['report'] for r in found), report_paths()
    for folder, subject in SUBJECTS.items():
        lines += [f'## {subject}', '']
        for name in (n for n in names if paths[n].parent.name == folder):
            lines += gallery_section(name, [r for r in found if r['report'] == name])
    pages = [f'{page_name(r)}.ipynb' for r in found]
    return '\n'.join([*lines, ':::{toctree}', ':hidden:', '', *pages, ':::', ''])


def tested(c, said):
    "Those of all (run, `Claim`) that test an entry of claims.json."
    unknown = set(c['tests']) - set(WORDINGS)
    if unknown: raise ValueError(f"docs/claims.json: there is no claim {sorted(unknown)[0]!r} in WORDINGS")
    return [(r, claim) for r, claim in said if claim.id in c['tests']]

def main_lines(c, lines):
    "The lines that decide: of the first test of a claim, with the values under `main` in claims.json."
    def is_main(claim):
        values = c.get('main', {}).items()
        return claim.id == c['tests'][0] and all(claim.values.get(k) == v for k, v in values)
    return [(r, claim) for r, claim in lines if is_main(claim)]

def outcome(lines):
    "The outcomes by run, in words."
    said = {}
    for r, claim in lines: said.setdefault(claim.outcome, []).append(r['label'])
    if len(said) == 1: return next(iter(said))
    return '; '.join(f"{k} in {', '.join(dict.fromkeys(v))}" for k, v in said.items()) or 'not tested yet'

def claim_section(c, lines):
    "A claim: what was found in a line for each run, the figure of the first, and all that was tested."
    head = [f"## {c['claim']}", '', f"*{c['where']}.* {c.get('note', '')}".strip(), '']
    if not lines: return [*head, 'No committed run tests this.', '']
    report = about(lines[0][0]['report'])[0]
    head += [f'- **{x.outcome.capitalize()}** in {link(r)}: {x.figures}.' for r, x in main_lines(c, lines)]
    head += ['', f"These are results of the report *{report}*.", '']
    r = next((r for r, _ in lines if r['figures']), None)
    if r: head += [*figure(r, '../reports/'), '']
    rows = [f'| {link(r)} | {x.outcome} | {x.sentence} | {x.figures} |' for r, x in lines]
    return [*head, '| run | outcome | claim | figures |', '|---|---|---|---|', *rows, '']

def claims(found):
    "The claims of the paper and of its readers with what the reports found."
    asked = json.loads((HERE/'claims.json').read_text(encoding='utf-8'))
    said = [(r, claim) for r in found for claim in read_claims(r['folder']/'results.json')]
    lines = {c['claim']: tested(c, said) for c in asked}
    def table(is_open, what):
        head = [f'| {what} | where | outcome |', '|---|---|---|']
        rows = []
        for c in (c for c in asked if c.get('open', False) == is_open):
            found_so_far = outcome(main_lines(c, lines[c['claim']]))
            rows.append(f"| [{c['claim']}](#{anchor(c['claim'])}) | {c['where']} | {found_so_far} |")
        return [*head, *rows, '']
    intro = (HERE/'pages'/'claims_head.txt').read_text(encoding='utf-8')
    out = ['# Claims', '', intro, '', *table(False, 'claim of the paper'),
           '## Open questions', '', 'Questions of readers of the paper, and our own.', '',
           *table(True, 'question')]
    return '\n'.join([*out, *(l for c in asked for l in claim_section(c, lines[c['claim']]))])
