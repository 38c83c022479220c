"""The numbers of each method, evaluation and regime are the recorded ones: a change of the code that should
not change them is seen. On another processor they differ in the last digits, and the tests are skipped.

    python tests/test_pinned.py    records them in tests/pinned.json
"""
import json, os, sys
from pathlib import Path

import pytest, torch

from conftest import ROOT
from kdnb.methods.parallel import train_parallel
from kdnb.data.synthetic import compose
from kdnb.methods.registry import make_method
from kdnb.data.dataset import sample
from kdnb.evaluation.answers import evaluate
from kdnb.experiments.runs import Experiment
from kdnb.models.forward import logits_at, token_logprobs
from kdnb.models.generation import generate
from kdnb.models.memory import has_fast_bfloat16
from kdnb.models.model import load_lm
from kdnb.models.scoring import score_candidates
from kdnb.methods.mend import Practice, practice_pairs, train_editor
from kdnb.reporting.runner import machine

PINNED = Path(__file__).with_name('pinned.json')
# of one name there are processors that differ in the last digits, and in whether bfloat16 is fast
PROCESSOR = ', '.join([machine(), torch.backends.cpu.get_cpu_capability()]
                      + ['bfloat16']*has_fast_bfloat16(torch.device('cpu')))
TEXT = str(ROOT/'kdnb'/'assets'/'neutral.txt')
FEW = dict(steps=4)
PAPER = dict(FEW, trainable='all', lr=1e-4, retain_weight=0., n_name_swaps=0, context_amplification=0.)
METHODS = {
    'distill': ('distill', FEW),
    'paper': ('distill', PAPER),
    'finetune-definition': ('finetune-definition', FEW),
    'finetune-transfer': ('finetune-transfer', FEW),
    'rome': ('rome', dict(FEW, text=TEXT, n_contexts=2)),
    'memit': ('memit', dict(FEW, text=TEXT, n_contexts=2)),
    'base': ('base', {}),
    'prepend': ('prepend', {}),
    'random': ('random', {}),
    'retrieve': ('retrieve', {})}
torch.set_num_threads(1) # the last digits depend on it
IGNORED = ('seconds', 'memory', 'peak', 'sha', 'key')


def flat(value, name=''):
    "All numbers of a result in their order, whatever its fields are called."
    if any(word in name for word in IGNORED): return []
    if isinstance(value, bool) or value is None: return [value]
    if isinstance(value, (int, float)): return [float(value)]
    if isinstance(value, torch.Tensor):
        all = value.float().flatten()
        return all.tolist() if len(all) < 60 else [*all[::len(all)//20].tolist(), all.norm().item()]
    if isinstance(value, dict): return [x for k, v in value.items() for x in flat(v, str(k))]
    if isinstance(value, (list, tuple)): return [x for v in value for x in flat(v)]
    return []


def pass_over(lm, ds):
    "Results of the forward functions."
    ids = [lm.encode(e.definition) for e in ds.entities[:3]]
    probes = [p for e in ds.entities[:3] for p in e.probes]
    prompts, candidates = [p.prompt for p in probes], [p.candidates for p in probes]
    scores = score_candidates(lm, prompts, candidates, separators=[p.separator for p in probes])
    return flat([logits_at(lm, ids, [[2, 5]]*3), token_logprobs(lm, ids, [1]*3), scores])


def edited(lm, ds, sets, method, settings):
    "Losses of a fixed edit, and its evaluation."
    few = sample(ds.split('test'), 3)
    first, second, _ = few.entities
    edit = make_method(method, **settings)(lm, [first], sets, 5)
    before = lm.sha256
    with edit.on(lm): res = evaluate(lm, [first], few.specificity[:6], [second])
    assert lm.sha256 == before
    return flat([list(getattr(edit, 'losses', None) or []), res])


def regime(lm, ds, sets, folder, regime, **settings):
    run = Experiment(
        lm, sample(ds.split('test'), 3), 'distill', regime, transfer=sets, n_specificity=8,
        folder=folder, **FEW, **settings)
    run.run(progress=False)
    return [x for path in run.done() for x in flat(json.loads(path.read_text()))]


def several(lm, ds, sets):
    few = sample(ds.split('test'), 3).entities
    return flat([edit.losses for edit in train_parallel(make_method('distill', **FEW), lm, few, sets, 3)])


def mend(lm, folder):
    entities = compose(6).entities
    pairs = practice_pairs(lm, entities)
    practice = Practice(blocks=1, rank=4, each=2, hold=2, steps=4)
    train_editor(lm, pairs, folder/'editor', practice, progress=False)
    edit = make_method('mend', editor=str(folder/'editor'))(lm, entities[:1], {}, 0)
    with edit.on(lm): return flat(evaluate(lm, entities[:1], (), entities[1:2]))


def numbers(name, folder_of, ds, sets, folder):
    "The numbers called `name`: MODEL/WHAT."
    import kdnb.methods.locating
    kdnb.methods.locating.cache_folder = lambda: folder/'cache'
    model, what = name.split('/')
    lm = load_lm(str(folder_of(model)), device='cpu')
    if what == 'pass': return pass_over(lm, ds)
    if what in METHODS: return edited(lm, ds, sets, *METHODS[what])
    if what == 'batch': return regime(lm, ds, sets, folder, 'batch')
    if what == 'sequential': return regime(lm, ds, sets, folder, 'sequential')
    if what == 'single': return regime(lm, ds, sets, folder, 'single')
    if what == 'parallel': return regime(lm, ds, sets, folder, 'single', edits_per_batch=3)
    if what == 'several': return several(lm, ds, sets)
    if what == 'mend': return mend(lm, folder)
    if what == 'written':
        return flat([lm.encode(t) for t in generate(lm, ['The baker'], n=2, max_new_tokens=8)[0]])


NAMES = [f'{m}/{w}' for m in ('llama', 'gpt2') for w in ('pass', *METHODS)]
NAMES += [f'llama/{w}' for w in ('single', 'batch', 'sequential', 'parallel', 'several', 'mend', 'written')]
NAMES += ['gpt_neox/pass', 'gemma3/pass', 'gpt_neo/distill', 'qwen3/distill']
NAMES += ['smollm2/pass', 'smollm2/distill', 'smollm2/finetune-definition', 'smollm2/rome', 'smollm2/prepend']


def part_of(name): return PINNED.with_suffix(f'.{name.replace("/", "-")}.part')


@pytest.fixture
def folder_of(tiny_folder): return lambda model: model if model == 'smollm2' else tiny_folder(model, 2)


@pytest.mark.parametrize('name', NAMES)
def test_numbers_are_the_recorded_ones(name, folder_of, ds, sets, tmp_path):
    if os.environ.get('KDNB_PIN'): # recording
        part_of(name).write_text(json.dumps(numbers(name, folder_of, ds, sets, tmp_path)))
        return
    pinned = json.loads(PINNED.read_text())
    if pinned['machine'] != PROCESSOR: pytest.skip(f"recorded on another processor ({pinned['machine']})")
    got, want = numbers(name, folder_of, ds, sets, tmp_path), pinned['numbers'][name]
    assert len(got) == len(want)
    assert got == pytest.approx(want, rel=1e-5, abs=1e-6, nan_ok=True)


if __name__ == '__main__':
    os.environ['KDNB_PIN'] = 'record'
    code = pytest.main(['-q', '-x', __file__])
    rounded = lambda xs: [round(x, 7) if isinstance(x, float) else x for x in xs]
    if not code:
        recorded = {n: rounded(json.loads(part_of(n).read_text())) for n in NAMES}
        PINNED.write_text(json.dumps({'machine': PROCESSOR, 'numbers': recorded}))
    for n in NAMES: part_of(n).unlink(missing_ok=True)
    sys.exit(code)
