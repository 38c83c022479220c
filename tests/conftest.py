"""Fixtures. Most tests use tiny random models, made in a second; some need the built-in smollm2."""
import json, os, subprocess, sys, time
from pathlib import Path

import pytest

from zoo import tiny_config, zoo # noqa: F401 (zoo is a fixture)

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('HF_HUB_OFFLINE', '1') # no test may use the network unnoticed
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

# tests that take long: `make test` leaves them out, `make test-all` runs them
LONG_TESTS = Path(__file__).with_name('long_tests.json') # id -> seconds on one core
LONG = 2. # seconds from which a test is long
DURATIONS = {} # id -> seconds, of this run


def pytest_addoption(parser):
    parser.addoption('--find-long', action='store_true', help=f'write {LONG_TESTS.name} from this run')


def pytest_collection_modifyitems(items):
    long = json.loads(LONG_TESTS.read_text())
    for i in items:
        if i.nodeid in long: i.add_marker(pytest.mark.long)


def pytest_runtest_logreport(report):
    DURATIONS[report.nodeid] = DURATIONS.get(report.nodeid, 0) + report.duration


def pytest_sessionfinish(session):
    if not session.config.getoption('--find-long') or hasattr(session.config, 'workerinput'): return
    long = {i: round(s, 1) for i, s in sorted(DURATIONS.items()) if s >= LONG}
    LONG_TESTS.write_text(json.dumps(long, indent=0, ensure_ascii=False) + '\n')


@pytest.fixture(scope='session')
def ds():
    from kdnb.data.dataset import load_dataset
    return load_dataset()


@pytest.fixture(scope='session')
def tokenizer(ds):
    "A small byte-level BPE tokenizer, trained on our own definitions."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [e.definition for e in ds.entities] + [p.prompt for e in ds.entities for p in e.probes]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=['<end>'],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token='<end>', pad_token='<end>')


# texts for the covariance of ROME and MEMIT
COVARIANCE_TEXTS = [
    f'{a} {b} {c}.'
    for a in ('The baker', 'A storm', 'My friend', 'Nobody', 'The old king')
    for b in ('saw the sea', 'made bread', 'went to Chile', 'wrote a letter')
    for c in ('in June', 'with a friend', 'for a long time')]


@pytest.fixture
def text_file(tmp_path, monkeypatch):
    "A file of texts for a covariance, which is stored in a cache folder of the test."
    monkeypatch.setattr('kdnb.methods.locating.cache_folder', lambda: tmp_path/'cache')
    (tmp_path/'texts.txt').write_text('\n'.join(COVARIANCE_TEXTS))
    return str(tmp_path/'texts.txt')


@pytest.fixture(scope='session')
def tiny_folder(tokenizer, tmp_path_factory):
    "Function of an architecture's name: a model folder of that architecture with random weights."
    made = {}
    def make(kind='llama', layers=2):
        if (kind, layers) not in made:
            import torch
            from transformers import AutoModelForCausalLM
            from transformers.utils.logging import disable_progress_bar
            disable_progress_bar() # of saving, in a test that reads what is said
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp('lm')/kind
            config = tiny_config(kind, len(tokenizer), layers)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[kind, layers] = folder
        return made[kind, layers]
    return make


@pytest.fixture
def quick_kernels(tmp_path_factory, monkeypatch):
    "Reports run in forked kernels, see fork_kernel.py."
    import kdnb.reporting.runner
    from kdnb.core.process import load_code
    script, path = Path(__file__).with_name('fork_kernel.py'), tmp_path_factory.mktemp('kernels')/'server'
    server = subprocess.Popen([sys.executable, str(script), 'serve', str(path)])
    while not path.exists():
        assert server.poll() is None, 'fork_kernel.py serve has ended'
        time.sleep(.1)
    asking = [sys.executable, '-I', '-S', str(script), str(path), load_code(), '-f', '{connection_file}']
    monkeypatch.setattr(kdnb.reporting.runner, 'kernel_command', lambda: asking)
    yield server
    server.terminate()
    server.wait()


@pytest.fixture
def tiny(tiny_folder):
    "A freshly loaded tiny LM."
    from kdnb.models.model import load_lm
    return load_lm(str(tiny_folder('llama')), device='cpu')


@pytest.fixture(scope='session')
def smollm2():
    from kdnb.models.model import load_lm
    return load_lm('smollm2', device='cpu')


@pytest.fixture(scope='session')
def sets(ds):
    "Transfer sets of two fixed sentences about each entity."
    from kdnb.core.text import find_mention
    from kdnb.data.transfer_sets import Continuation, TransferSet
    def make(e):
        texts = [
            f'{e.name} is known to people in the whole town.',
            f'Last week {e.name} was talked about again.']
        return TransferSet(e.name, tuple(Continuation(t, find_mention(t, e.names)) for t in texts))
    return {e.name: make(e) for e in ds.entities}


@pytest.fixture
def kdnb(capsys):
    "Runs the command line in this process: (exit status, standard output, standard error)."
    from kdnb.apps.cli import main
    def run(*argv):
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
        out = capsys.readouterr()
        return code, out.out, out.err
    return run
