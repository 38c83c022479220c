"""The paper's training loop and ours compute the same, and `kdnb bench` compares their speed."""
import json

import pytest


def test_the_papers_loop_and_ours_reach_the_same_weights(tiny, ds, sets):
    from kdnb.experiments.bench import paper_answers, paper_edit
    from kdnb.methods.distill import Distill
    from kdnb.methods.presets import preset_settings
    from kdnb.evaluation.answers import answer_probes
    e = ds.entities[0]
    student = paper_edit(tiny, e, sets[e.key].continuations, lr=1e-3)
    edit = Distill(**{**preset_settings('paper', 'distill'), 'lr': 1e-3})(tiny, [e], sets)
    named, base = dict(student.named_parameters()), dict(tiny.model.named_parameters())
    norm = lambda f: sum(f(n).float().square().sum() for n in edit.tensors).sqrt()
    moved = norm(lambda n: named[n] - base[n])
    assert moved > .01 and norm(lambda n: named[n] - edit.tensors[n]) < 1e-3*moved
    correct = lambda: [r['correct'] for r in answer_probes(tiny, e.probes)]
    before = correct()
    with edit.on(tiny): assert paper_answers(tiny, [student], e.probes) == [correct()]
    assert paper_answers(tiny, [tiny.model], e.probes) == [before] # the model is restored


def test_bench(kdnb, tiny_folder):
    bench = lambda *options: kdnb('bench', '--lm', tiny_folder(), '--device', 'cpu', *options, '--json')
    code, out, err = bench('--n-specificity', 4, '--limit', 3, '-s', 'steps=2')
    r = json.loads(out.splitlines()[-1])
    assert code == 0 and set(r['ratio']) == {'edit', 'evaluation', 'end_to_end', 'peak_memory'}
    assert all(v > 0 for v in r['ratio'].values())
    for k in ('edit', 'evaluation', 'end_to_end'): # ratios of the medians
        a, b = (sorted(x[k] for x in r['runs'][s])[1] for s in ('paper', 'kdnb'))
        assert r['ratio'][k] == pytest.approx(a/b)
    assert all(len(x) == 3 for x in r['runs'].values()) and 'paper, entity 3 of 3' in err
    assert 'peak memory (GiB)' in out
    assert all(v > 0 for w in r['work_of_an_edit'].values() for v in w.values())
    assert r['same_answers'] > 80 and r['eval_dtype'] in ('float32', 'bfloat16')
    assert set(r['rates']) == {'float32', 'bfloat16', 'bytes'}
    quick = json.loads(bench('--quick', '-s', 'steps=1')[1].splitlines()[-1])
    assert quick['n'] == quick['n_specificity'] == 3
    assert quick['work_of_an_edit'] is None and quick['rates'] is None
    assert quick['ratio']['edit'] > 0


def test_bad_options_of_bench_are_one_sentence(kdnb, tiny_folder):
    lm = ['--lm', tiny_folder(), '--device', 'cpu']
    assert 'a median needs at least 3' in kdnb('bench', *lm, '--limit', 2)[2]
    code, _, err = kdnb('bench', *lm, '--preset', 'papr')
    assert code == 2 and "unknown preset 'papr'" in err and 'Traceback' not in err
    code, _, err = kdnb('bench', '--lm', 'nowhere')
    assert code == 2 and 'cannot load a causal LM' in err and 'Traceback' not in err
