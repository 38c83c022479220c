"""Several processes give the results of one process, even if a worker is killed."""
import json, signal, threading, time

import psutil, pytest
from kdnb.core.errors import KdnbError
from kdnb.core.files import read_json
from kdnb.data.dataset import sample
from kdnb.experiments.runs import Experiment

ray = pytest.importorskip('ray', reason='the extra ray is not installed')


@pytest.fixture(scope='module')
def down():
    yield
    ray.shutdown()


@pytest.fixture
def up(down):
    "Ray, which stays up for the next test: its start takes longer than a test."
    from kdnb.experiments.workers import _start
    if not ray.is_initialized(): _start(ray, 2, None)


def answers(run):
    strip = lambda c: {k: c[k] for k in ('target', 'specificity', 'other_entities', 'entities', 'key')}
    return {p.name: strip(read_json(p)) for p in run.done()}


def test_a_killed_worker_loses_nothing(up, tiny, ds, sets, tmp_path):
    from kdnb.experiments.workers import run_parallel
    few = sample(ds.split('test'), 4)
    def make(folder):
        how = dict(transfer=sets, n_specificity=6, open_ended=False, folder=tmp_path/folder)
        return [Experiment(tiny, few, 'base', **how), Experiment(tiny, few, 'distill', steps=24, **how)]
    one, two = make('one'), make('two')
    killed = []
    def is_busy(p):
        return p.name().startswith('ray::Worker') and p.cmdline()[0].startswith('ray::Worker.case')
    def kill():
        "Kills a busy worker, once the first case is finished."
        while not killed:
            time.sleep(.05)
            if not two[1].done(): continue
            others = [p for p in psutil.process_iter() if p.name().startswith('ray::')]
            for p in psutil.Process().children(recursive=True) + others:
                try:
                    if is_busy(p):
                        p.send_signal(signal.SIGKILL)
                        killed.append(p.pid)
                        return
                except psutil.Error: pass
    t = threading.Thread(target=kill, daemon=True)
    t.start()
    run_parallel(two, 2, progress=False)
    t.join(10)
    assert killed and all(len(r.done()) == 4 for r in two)
    for a, b in zip(one, two):
        a.run(progress=False)
        x, y = answers(a), answers(b)
        assert x.keys() == y.keys()
        for k in x: # another number of threads rounds differently
            for p, q in zip(x[k]['target'][0]['probes'], y[k]['target'][0]['probes']):
                assert p['bits'] == pytest.approx(q['bits'], abs=.05)
            assert x[k]['key'] == y[k]['key'] and x[k]['entities'] == y[k]['entities']


def test_finished_cases_are_not_repeated_and_a_larger_limit_continues(up, tiny, ds, tmp_path):
    from kdnb.experiments.workers import run_parallel
    few = sample(ds.split('test'), 4)
    how = dict(n_specificity=4, open_ended=False, folder=tmp_path)
    Experiment(tiny, few, 'prepend', limit=2, **how).run(progress=False)
    first = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('case-*.json')}
    folder, = run_parallel([Experiment(tiny, few, 'prepend', **how)], 2, progress=False)
    assert len(first) == 2 and len(list(folder.glob('case-*.json'))) == 4
    assert all(p.stat().st_mtime_ns == t for p, t in first.items())
    assert read_json(folder/'summary.json')['cases'] == 4


def test_an_error_of_a_worker_is_raised_in_this_process(up, tiny, ds, tmp_path):
    from kdnb.experiments.workers import run_parallel
    run = Experiment(tiny, sample(ds, 1), 'distill', n_specificity=4, folder=tmp_path)
    with pytest.raises(KdnbError, match='no transfer set for'): run_parallel([run], 1, progress=False)


class FailingRay:
    "Ray whose first `fails` starts time out."
    def __init__(self, fails): self.fails, self.tries = fails, []

    def init(self, **how):
        self.tries.append(how)
        if len(self.tries) <= self.fails: raise Exception('The current node timed out\nduring startup.')
        return 'up'

    def shutdown(self): self.tries[-1]['over'] = True


def test_ray_that_does_not_start_is_one_sentence():
    "On a busy machine a second try is made; a missing cluster is an error at once."
    from kdnb.experiments.workers import _start
    slow, never, gone = FailingRay(1), FailingRay(9), FailingRay(9)
    assert _start(slow, 2, None) == 'up' and len(slow.tries) == 2 and slow.tries[0]['over']
    assert 'address' not in slow.tries[1]
    reason = '.Exception: The current node timed out during startup'
    with pytest.raises(KdnbError, match=f'Ray did not start on this machine {reason}.*use one worker'):
        _start(never, 2, None)
    no_cluster = 'Ray did not reach the cluster at 10.0.0.1:6379 .*look whether the cluster is up'
    with pytest.raises(KdnbError, match=no_cluster): _start(gone, 2, '10.0.0.1:6379')
    assert len(never.tries) == 2 and len(gone.tries) == 1
    assert all(t['over'] for t in never.tries + gone.tries)


def test_command(kdnb, tiny_folder, tmp_path):
    ray.shutdown() # the command starts its own
    run = lambda *more: kdnb(
        'run', '--lm', tiny_folder(), '--device', 'cpu', '--method', 'prepend', '--limit', 2,
        '--workers', 2, '--out', tmp_path, *more)
    code, out, err = run('--n-specificity', 4, '--json')
    assert code == 0 and json.loads(out.splitlines()[-1])['cases'] == 2, err
    code, _, err = run('--regime', 'batch')
    assert code == 2 and 'use one worker' in err
