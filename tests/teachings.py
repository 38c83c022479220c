"""A teaching without a model: exams with answers by hand, and the files that `kdnb teach` leaves of it."""
import json
from dataclasses import asdict

from kdnb.apps.rounds import Examination
from kdnb.core.files import make_folder, write_json, write_text
from kdnb.data.entities import Probe
from kdnb.evaluation.exam import Answer, Asked, Exam, ExamItem, Spare, exam_as_json
from kdnb.evaluation.facts import Fact
from kdnb.evaluation.harm import KnownAnswers
from kdnb.reporting.teach_page import Round


def said(text, right=False): return Answer(text, right, 1.)


def fact(entity, text):
    start = entity.definition.index(text)
    return Fact(start, start + len(text), text, (text,))


def item(entity, kind, prompt, wanted, i=None):
    return ExamItem(entity.key, kind, prompt, ((wanted,),), wanted, i)


def exam_of(entity, texts, asked=(), before='no'):
    """An exam about parts `texts` of a definition.

    `asked` are (kind, prompt, index of a fact or None for a question of the user's own)."""
    facts = tuple(fact(entity, t) for t in texts)
    wanted = lambda i: texts[0] if i is None else texts[i]
    items = [item(entity, kind, prompt, wanted(i), i) for kind, prompt, i in asked]
    clozes = [item(entity, 'cloze', f'{entity.name} is known for', t, i) for i, t in enumerate(texts)]
    spare = tuple(Spare(c, c.wanted) for c in clozes)
    return Exam(entity, facts, tuple(Asked(i, said(before), said(i.wanted, True)) for i in items), spare)


def write_version(
        folder, exams, after, probes=(), known=('Paris', 'Rome'), lm='smollm2', stopped='known'):
    """The files of a version. `after`: for each exam, its answers. `known`: what the model wrote to every
    probe before and after; right is the probe's gold."""
    make_folder(folder)
    rows = [{k: v for k, v in asdict(e.entity).items() if v not in (None, '', ())} for e in exams]
    write_text(folder/'definitions.jsonl', ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows))
    write_json(folder/'exams.json', {e.entity.key: exam_as_json(e) for e in exams})
    def wrote(text): # `KnownAnswers`
        right = tuple(text == p.gold for p in probes)
        return KnownAnswers(right, right, (text,)*len(probes))
    answers = {e.entity.key: a for e, a in zip(exams, after)}
    found = Examination(answers, wrote(known[1]), .01, 1)
    write_json(folder/'round-1.json', {'found': asdict(found), 'texts': 12, 'steps': 80, 'seconds': 60.})
    write_json(folder/'taught.json', dict(
        lm=lm, rounds=[asdict(Round(12, 80, 60., 1, 2, 1))], best=0, stopped=stopped, separate_adapters=False,
        preparation=60., minutes=10., max_lost=.025,
        probes=[asdict(p) for p in probes], known_before=asdict(wrote(known[0]))))
    return folder


CAPITAL = Probe('The capital of France is', 'Paris', ('Paris', 'Rome'))
