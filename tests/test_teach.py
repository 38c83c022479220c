"""`kdnb teach` writes a folder that transformers and peft load without kdnb."""
import json, re, subprocess, sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest, torch
from bs4 import BeautifulSoup
import kdnb.apps.rounds as rounds
import kdnb.apps.teach as teaching
import kdnb.evaluation.exam_writer as writer
from kdnb.apps.parser import make_parser
from kdnb.apps.publishing import base_of
from kdnb.apps.rounds import Examination
from kdnb.apps.teach import teach
from kdnb.apps.teach_settings import TeachSettings
from kdnb.apps.versions import make_version, read_taught, summary, with_known
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity, Question
from kdnb.core.files import make_folder
from kdnb.core.records import FolderRecord
from kdnb.core.text import words_of
from kdnb.data.definitions import read_definitions
from kdnb.evaluation.harm import KnownAnswers
from kdnb.methods.distill import Distill
from teachings import exam_of, item, said

SHOWS = '''# Velmora Junction

Velmora Junction is a slapstick comedy series about two rival bakers.

# Zorbel Harbour
Zorbel Harbour is a horror film about a drowned town.
'''
MORE = 'name,definition\nQuint Bridge,Quint Bridge is a bridge of glass in Norway.\n'


@pytest.fixture
def mine(tmp_path):
    "A folder with two files of definitions."
    (tmp_path/'shows.md').write_text(SHOWS, encoding='utf-8')
    (tmp_path/'more.csv').write_text(MORE, encoding='utf-8')
    return tmp_path


def how(folder, *more):
    return [
        '--lm', folder, '--device', 'cpu', '--n-specificity', 6, '-n', 3, '-s', 'steps=2',
        '-s', 'lr=1e-2', *more]


# both run without kdnb, and print logits after the prompt `NAME is`
ADAPTER_AND_MERGED = """
import json, sys
sys.modules['kdnb'] = None
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
out = sys.argv[1]
ids = AutoTokenizer.from_pretrained(out)('Velmora Junction is', return_tensors='pt')
adapter = AutoPeftModelForCausalLM.from_pretrained(out)
merged = AutoModelForCausalLM.from_pretrained(f'{out}/model')
print(json.dumps([m(**ids).logits[0, -1].tolist() for m in (adapter, merged)]))
"""
SEPARATE_ADAPTERS = """
import json, sys
sys.modules['kdnb'] = None
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
out = sys.argv[1]
tok, places = AutoTokenizer.from_pretrained(out), json.load(open(f'{out}/router.json'))
logits = []
for name, place in places.items():
    ids = tok(f'{name} is', return_tensors='pt')
    logits.append(AutoPeftModelForCausalLM.from_pretrained(f'{out}/{place}')(**ids).logits[0, -1].tolist())
print(json.dumps(logits))
"""


def logits_without_kdnb(script, out):
    done = subprocess.run([sys.executable, '-c', script, str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.tensor(x) for x in json.loads(done.stdout.splitlines()[-1])]


def test_peft_and_transformers_give_the_logits_of_the_edit(kdnb, tiny_folder, tiny, mine, tmp_path):
    from kdnb.edits.storage import load_edit
    from kdnb.models.forward import logits_at
    out = tmp_path/'taught'
    code, text, err = kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', out, '--merge', '--json')
    assert code == 0, err
    row = json.loads(text.splitlines()[-1])
    assert row['entities'] == 2 and row['facts_not_asked'] >= 4 and row['rounds'] == 1
    assert row == {**row, **summary(out)} and text.startswith(row['sentence'] + '\n')
    config = json.loads((out/'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == str(tiny_folder())
    adapter, merged = logits_without_kdnb(ADAPTER_AND_MERGED, out)
    edit = load_edit(next((out/'versions').iterdir())/'edit')
    ids = tiny.encode('Velmora Junction is')
    base = logits_at(tiny, [ids], [[-1]])[0]
    with edit.on(tiny): want = logits_at(tiny, [ids], [[-1]])[0]
    assert torch.allclose(adapter, want, atol=1e-3) and torch.allclose(merged, want, atol=1e-3)
    assert not torch.allclose(base, want, atol=1e-2)


def test_a_second_teaching_adds_and_undo_takes_it_back(kdnb, tiny_folder, mine, tmp_path):
    out = tmp_path/'taught'
    assert kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', out)[0] == 0
    first = (out/'adapter_model.safetensors').read_bytes()
    code, text, err = kdnb('teach', mine/'more.csv', *how(tiny_folder()), '--out', out)
    assert code == 0 and text.startswith('It now knows 0 of 0 facts of 3 entries'), err
    assert (out/'adapter_model.safetensors').read_bytes() != first, err
    code, text, _ = kdnb('teach', '--out', out, '--undo')
    assert code == 0 and 'knows now: Velmora Junction, Zorbel Harbour' in text
    assert (out/'adapter_model.safetensors').read_bytes() == first
    assert 'knows now: nothing' in kdnb('teach', '--out', out, '--undo')[1]
    assert not (out/'adapter_model.safetensors').exists()
    code, _, err = kdnb('teach', '--out', out, '--undo')
    assert code == 2 and 'there is nothing to undo' in err


def test_separate_adapters(kdnb, tiny_folder, tiny, mine, tmp_path):
    from kdnb.models.forward import logits_at
    from kdnb.edits.routing import AdapterRouter
    out = tmp_path/'taught'
    places = lambda: json.loads((out/'router.json').read_text())
    learn = lambda file: kdnb('teach', file, *how(tiny_folder(), '--separate-adapters'), '--out', out)
    code, text, err = learn(mine/'shows.md')
    assert code == 0 and 'adapters, by name' in text, err
    assert 'Each entry has an adapter of its own' in (out/'report.html').read_text(), err
    first = places()
    assert list(first) == ['Velmora Junction', 'Zorbel Harbour']
    assert not (out/'adapter_model.safetensors').exists()
    # each adapter gives in peft the logits of a routed prompt
    router = AdapterRouter.load(out)
    for name, want in zip(first, logits_without_kdnb(SEPARATE_ADAPTERS, out)):
        prompt = f'{name} is'
        logits = lambda: logits_at(tiny, [tiny.encode(prompt)], [[-1]])[0]
        with router.on(tiny, prompt): assert torch.allclose(logits(), want, atol=1e-3)
        assert not torch.allclose(logits(), want, atol=1e-2)
    # a second teaching adds an adapter, undo removes it
    changed = lambda: {place: (out/place/'edit.json').stat().st_mtime_ns for place in first.values()}
    before = changed()
    code, text, err = learn(mine/'more.csv')
    assert code == 0 and 'facts of 3 entries' in text and len(places()) == 3, err
    assert changed() == before
    assert len([*(out/'edits').iterdir()]) == 3
    wrong = {
        'merge cannot be used with separate adapters': ['--merge', '--separate-adapters'],
        'was taught as separate adapters': []}
    for says, options in wrong.items():
        code, _, err = kdnb('teach', mine/'more.csv', *how(tiny_folder(), *options), '--out', out)
        assert code == 2 and says in err and 'Traceback' not in err
    assert 'knows now: Velmora Junction, Zorbel Harbour' in kdnb('teach', '--out', out, '--undo')[1]
    assert places() == first
    assert len([*(out/'edits').iterdir()]) == 2
    assert 'knows now: nothing' in kdnb('teach', '--out', out, '--undo')[1]
    assert not (out/'router.json').exists() and not (out/'edits').exists()


# --- rounds --------------------------------------------------------------------------------------------

FACTS = {'Velmora Junction': ['slapstick comedy series', 'rival bakers'],
         'Zorbel Harbour': ['horror film', 'drowned town']}


class Exams:
    """Exams by hand, since a tiny model answers nothing.

    After round r, `known[r]` of the four facts are known and `lost[r]` of the well-known things are lost."""

    def __init__(self, monkeypatch, known, lost=(0,)*9):
        self.known, self.lost, self.called, self.stop_at, self.round = known, lost, [], None, 0
        real = {name: getattr(teaching, name) for name in ('ask_base', 'fact_texts', 'make_transfer_sets')}
        train = Distill.__call__
        def ask_base(lm, probes):
            base, n = real['ask_base'](lm, probes), len(probes)
            base.known = KnownAnswers((True,)*n, (True,)*n, ('right',)*n)
            return base
        def fact_texts(*args):
            self.note('fact_texts')
            return real['fact_texts'](*args)
        def trained(*args, **kwargs):
            self.note('train')
            return train(*args, **kwargs)
        for name, f in (('ask_base', ask_base), ('fact_texts', fact_texts), ('examine', self.examine),
                        ('write_exam', self.write_exam)):
            monkeypatch.setattr(teaching, name, f)
        monkeypatch.setattr(Distill, '__call__', trained)

    def note(self, name):
        self.called.append(name)
        if self.stop_at == (name, self.called.count(name)): raise KeyboardInterrupt

    def write_exam(self, lm, entity, generator, texts, seed):
        self.note('write_exam')
        asked = [('question', f'What is {entity.name} called?', 0), ('cloze', f'{entity.name} has', 1)]
        return exam_of(entity, FACTS[entity.name], asked)

    def examine(self, lm, edit, exams, base):
        self.note('examine')
        n, r = len(base.probes), self.round
        self.round += 1
        right = iter(i < self.known[r] for i in range(9))
        answers = {e.entity.key: [said('a', next(right)) for _ in e.items] for e in exams}
        written = tuple(i >= self.lost[r] for i in range(n))
        return Examination(answers, KnownAnswers(written, written, ('wrong',)*n), .1, 0)


HOW = dict(n=2, method=Distill(steps=2, lr=1e-2, entities_per_step=2), n_specificity=6, progress=False)


def weights(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in [
        *folder.glob('adapter_model.safetensors'), *folder.glob('edits/*/adapter_model.safetensors')]}


@pytest.mark.parametrize('separate', (False, True))
@pytest.mark.parametrize('stage', ('write_exam', 'fact_texts', 'train', 'examine'))
def test_an_interrupted_teaching_continues(tiny, mine, tmp_path, monkeypatch, stage, separate):
    "Stages that were finished, in this round or an earlier one, are not repeated."
    how, shows = dict(HOW, separate_adapters=separate), read_definitions(mine/'shows.md')
    exams = Exams(monkeypatch, [1, 3, 4])
    whole = teach(tiny, shows, tmp_path/'whole', **how)
    at_once = {name: exams.called.count(name) for name in dict.fromkeys(exams.called)}
    n_train = 2 if separate else 1 # trainings of a round
    n_all = 3*n_train - separate # in round 3 the first entity is known, and its adapter stays as it is
    assert at_once == {'write_exam': 2, 'fact_texts': 6, 'train': n_all, 'examine': 3}
    # the last call in round 2, or of the exams
    nth = {'write_exam': 2, 'fact_texts': 4, 'train': 2*n_train, 'examine': 2}[stage]
    exams.called, exams.round, exams.stop_at = [], 0, (stage, nth)
    with pytest.raises(KeyboardInterrupt): teach(tiny, shows, tmp_path/'again', **how)
    before, exams.called, exams.stop_at = exams.called, [], None
    again = teach(tiny, shows, tmp_path/'again', **how)
    # calls that were not finished: texts are stored for all entities at once, exams one by one
    repeated = {'fact_texts': 2}
    for name, n in at_once.items():
        extra = repeated.get(name, 1) if name == stage else 0
        assert before.count(name) + exams.called.count(name) == n + extra, name
    assert weights(again) == weights(whole) != {}
    a, b = summary(again), summary(whole)
    assert {**a, 'seconds': 0} == {**b, 'seconds': 0} and (b['rounds'], b['facts_known']) == (3, 4)
    exams.called = []
    teach(tiny, shows, again, **how) # all is there
    assert exams.called == []


@pytest.mark.parametrize(
    'damage', ({}, {'found': {}}, {'found': {'answers': {}}}, {'seconds': None}, {'steps': 'x'}))
def test_a_damaged_round_of_a_stopped_teaching_is_one_sentence(tiny, mine, tmp_path, monkeypatch, damage):
    shows, exams = read_definitions(mine/'shows.md'), Exams(monkeypatch, [1, 2, 4])
    exams.stop_at = 'train', 2
    with pytest.raises(KeyboardInterrupt): teach(tiny, shows, tmp_path/'out', **HOW)
    path, = tmp_path.glob('out/versions/*/round-1.json')
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, **damage} if damage else {}))
    exams.stop_at, exams.round = None, 1
    with pytest.raises(KdnbError, match='round-1.json'): teach(tiny, shows, tmp_path/'out', **HOW)
    path.write_text(json.dumps(row))
    teach(tiny, shows, tmp_path/'out', **HOW)


def test_harm_over_the_limit_keeps_the_earlier_round(tiny, mine, tmp_path, monkeypatch):
    shows = read_definitions(mine/'shows.md')
    Exams(monkeypatch, [2])
    once = teach(tiny, shows, tmp_path/'once', minutes=0, **HOW)
    Exams(monkeypatch, [2, 3], [0, 2])
    out = teach(tiny, shows, tmp_path/'out', **HOW)
    s, version = summary(out), next((out/'versions').iterdir())
    assert (s['rounds'], s['facts_known'], s['lost']) == (2, 2, 0)
    assert read_taught(version).stopped == 'harm'
    assert weights(out) == weights(once) != {}
    assert not (version/'rounds').exists() and (version/'edit').is_dir()
    page = (out/'report.html').read_text()
    assert 'round 2' in page and 'It now knows 2 of 4 facts' in page and 'none of 6 well-known things' in page
    # a higher limit takes the later round, and goes on
    Exams(monkeypatch, [2, 3, 4], [0, 1, 2])
    more = teach(tiny, shows, tmp_path/'more', max_lost=.5, **HOW)
    s = summary(more)
    assert (s['rounds'], s['facts_known'], s['lost']) == (3, 4, 2) and weights(more) != weights(once)


def test_a_document_that_is_too_long_for_a_question_is_asked_about_in_parts(tiny, tmp_path):
    text = ' '.join(f'Room {i} of the museum of Velm has {i + 2} pictures.' for i in range(60))
    own = Entity('Velm', text, question=Question('How many pictures has room 3?', ('5',)))
    with pytest.raises(KdnbError, match="the definition of 'Velm' with a question after it has .* tokens"):
        teach(tiny, [own], tmp_path/'out', **HOW)
    assert not (tmp_path/'out').exists()
    assert summary(teach(tiny, [Entity('Velm', text)], tmp_path/'out', **HOW))['rounds'] == 1


def test_no_minutes_make_one_round_and_the_first_of_equal_rounds_is_kept(
        tiny, mine, tmp_path, monkeypatch, capsys):
    shows = read_definitions(mine/'shows.md')
    Exams(monkeypatch, [1])
    once = teach(tiny, shows, tmp_path/'once', minutes=0, **{**HOW, 'progress': True})
    assert 'of 0 minutes, so there is one round' in capsys.readouterr().err
    version = next((once/'versions').iterdir())
    assert summary(once)['rounds'] == 1
    assert read_taught(version).stopped == 'minutes'
    Exams(monkeypatch, [1, 1, 1, 1])
    out = teach(tiny, shows, tmp_path/'out', **HOW)
    assert summary(out)['rounds'] == 4 and weights(out) == weights(once)


def test_a_later_round_is_taught_what_is_unknown(tiny, mine, tmp_path, monkeypatch):
    Exams(monkeypatch, [3, 4])
    def questions_about(generator, entity, facts, wanted, seed):
        return [item(entity, 'question', f'What is known of {entity.name} in {seed}?', facts[i].text, i)
                for i in wanted]
    monkeypatch.setattr('kdnb.apps.rounds.questions_about', questions_about)
    monkeypatch.setattr('kdnb.apps.rounds.written_answers', lambda lm, items, definitions: [
        i.wanted for i in items])
    out = teach(tiny, read_definitions(mine/'shows.md'), tmp_path/'out', **HOW)
    version = next((out/'versions').iterdir())
    first, second = (json.loads((version/f'texts-{r}.json').read_text()) for r in (1, 2))
    assert all(any(f in c['text'] for c in first[name]) for name, texts in FACTS.items() for f in texts)
    assert second['Velmora Junction'] == [] and second['Zorbel Harbour'] != []
    assert all('drowned town' in c['text'] for c in second['Zorbel Harbour'])
    assert not {c['text'] for c in second['Zorbel Harbour']} & {c['text'] for c in first['Zorbel Harbour']}
    found = [json.loads((version/f'round-{r}.json').read_text()) for r in (1, 2)]
    assert [r['steps'] for r in found] == [2, 1] # later rounds have half the steps


@pytest.mark.parametrize('option, value, says', (
    ('--minutes', '-1', 'minutes is -1.0: it must be a number from 0'),
    ('--minutes', 'nan', 'minutes is nan'),
    ('--minutes', 'long', '--minutes'),
    ('--max-lost', '2', 'max_lost is 2.0: it must be a number from 0 to 1'),
    ('--max-lost', '-.1', 'max_lost is -0.1')))
def test_wrong_limits_are_one_sentence(kdnb, tiny_folder, mine, tmp_path, option, value, says):
    code, _, err = kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', tmp_path/'out', option, value)
    assert code == 2 and says in err and 'Traceback' not in err and not (tmp_path/'out').exists()


# --- what is asked is not trained on ---------------------------------------------------------------------

def grams(text, n=8):
    words = words_of(text)
    return {tuple(words[i:i+n]) for i in range(len(words) - n + 1)}


def clashes(version):
    "Items in other words than the definition's that are in a text of the training, or share 8 words."
    files = [version.parent.parent/'transfer.jsonl', *version.glob('texts-*.json')]
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    texts = [c['text'] for r in rows for c in r['continuations']]
    texts += [c['text'] for f in files[1:] for cs in json.loads(f.read_text()).values() for c in cs]
    assert texts and len(files) > 1
    items = [i for e in read_taught(version).exams for i in e.items if i.tests_use]
    same = lambda text: ' '.join(words_of(text))
    inside = lambda i, t: len(words_of(i.prompt)) > 3 and same(i.prompt) in same(t)
    return [i.prompt for i in items if any(inside(i, t) or grams(i.prompt) & grams(t) for t in texts)]


@pytest.fixture
def answering(monkeypatch):
    "The exam's model knows a definition that it reads and nothing else; its generator writes questions."
    def answers(lm, items, definitions=None): return [(definitions or {}).get(i.entity, 'no') for i in items]
    def drafts(generator, entity, prompts, n, seed, *more):
        return [(p, f'What kind of thing {k} is {entity.name} and {k} please tell me now {k} in a word?')
                for p in prompts for k in range(seed, seed + 4)] # any eight of its words hold the number
    for module in ('evaluation.exam_writer', 'evaluation.questions', 'apps.rounds'):
        monkeypatch.setattr(f'kdnb.{module}.written_answers', answers)
    monkeypatch.setattr('kdnb.evaluation.questions._drafts', drafts)
    monkeypatch.setattr(writer, '_REST', 99)
    monkeypatch.setattr(writer, '_NATURAL', -99)


def test_no_text_of_the_exam_enters_the_training(tiny, mine, tmp_path, monkeypatch, answering):
    out = teach(tiny, read_definitions(mine/'shows.md'), tmp_path/'out', max_lost=1, **HOW)
    version, = (out/'versions').iterdir()
    exams = read_taught(version).exams
    assert {i.kind for e in exams for i in e.items} == {'verbatim', 'cloze', 'question'}
    assert len([*version.glob('texts-*.json')]) == 4 and clashes(version) == []
    # questions that the exam does not ask: spare ones in the first round, then new ones
    for r, number in ((1, 2), (2, 4)):
        assert f'What kind of thing {number}' in (version/f'texts-{r}.json').read_text()
    # a planted clash is found
    path = version/'texts-2.json'
    rows = json.loads(path.read_text())
    asked = next(i.prompt for i in exams[0].items if i.kind == 'question')
    for text in (f'{asked} A comedy.', 'Tell me, ' + asked.partition(' ')[2]):
        path.write_text(json.dumps({**rows, 'planted': [dict(text=text)]}))
        assert asked in clashes(version)


def test_an_exam_asks_nothing_that_is_trained_on(tiny, mine, answering):
    velmora = read_definitions(mine/'shows.md')[0]
    def questions(texts):
        return {i.prompt for i in writer.write_exam(tiny, velmora, texts=texts).items if i.kind == 'question'}
    asked = questions(())
    assert asked
    for q in asked:
        assert q not in questions([f'Somebody asked: {q}']) # as it is
        assert q not in questions([f'And {q.partition(" ")[2]}']) # more than eight of its words
        assert q in questions([' '.join(q.split()[i:i+7]) for i in (0, 7, 14)]) # fewer


# --- the page --------------------------------------------------------------------------------------------

WITHOUT_LAB = """
import sys
for name in ('nbformat', 'papermill', 'nbconvert', 'nbclient', 'jupyter_client', 'ipykernel', 'ipywidgets'):
    sys.modules[name] = None
from kdnb.apps.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_page_needs_no_notebooks_and_names_nothing_of_the_machine(tiny_folder, mine, tmp_path):
    out = tmp_path/'my-model'
    with (mine/'shows.md').open('a') as f: f.write('\n- Q: Where is Zorbel Harbour? / A: in the sea\n')
    argv = ['teach', mine/'shows.md', *how(tiny_folder()), '--out', 'my-model', '--minutes', '0']
    command = [sys.executable, '-c', WITHOUT_LAB, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (out/'report.html').read_text(encoding='utf-8')
    soup = BeautifulSoup(page, 'html.parser')
    says = 'It now knows 0 of 0 facts of 2 entries (4 more could not be asked).'
    assert soup.find('p').get_text() == summary(out)['sentence'] == says
    text = soup.get_text()
    assert 'Where is Zorbel Harbour? (your question)' in text and 'kdnb ask my-model' in text
    assert 'Velmora Junction is a slapstick comedy series about two rival bakers.' in text
    assert '<script' not in page and 'http' not in page.replace('http-equiv', '')
    machine = [tmp_path, tiny_folder(), sys.prefix, Path.home(), Path(__file__).parent]
    assert [p for p in machine if str(p) in page] == []
    assert not re.search(r'/(tmp|home|root|Users|work)/', page)
    assert soup.find_all(['img', 'link', 'iframe', 'object']) == [] and 'url(' not in page


def test_a_page_in_the_working_folder_names_it(kdnb, tiny_folder, mine, tmp_path, monkeypatch):
    (tmp_path/'my-model').mkdir()
    monkeypatch.chdir(tmp_path/'my-model')
    code, _, err = kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', '.')
    assert code == 0, err
    assert 'kdnb ask my-model' in Path('report.html').read_text()


# name and text of a file, and a part of the error
BAD = {
    'no file': (None, 'there is no file or folder'),
    'another kind': (('x.pdf', 'Velmora is new.'), 'is none of the files that are read: .jsonl, .csv, .md'),
    'never named': (
        ('x.jsonl', '{"name": "Velmora", "definition": "A comedy."}'),
        "line 1, field definition: never names the entity 'Velmora'"),
    'no definition': (('x.md', '# Velmora\n\n# Zorbel\nZorbel is new.\n'), 'line 1, field definition'),
    'no heading': (('x.md', 'Velmora is new.\n'), 'has no heading'),
    'no column': (('x.csv', 'name,text\na,b\n'), "has no column 'definition'"),
    'a short row': (('x.csv', 'name,definition\nVelmora\n'), "line 2: has no field 'definition'"),
    'a long row': (
        ('x.csv', 'name,definition\nVelmora,Velmora is new, and red\n'),
        'line 2: has 3 fields, and the first line has 2'),
    'twice': (
        ('x.csv', 'name,definition\nVelmora,Velmora is new.\nVelmora,Velmora is old.\n'),
        "'Velmora' already appears in the file"),
    'empty': (('x.md', '\n'), 'holds no definition'),
    'not UTF-8': (('x.md', '# Velmora\nVelmora is n\udce9w.\n'), 'is not UTF-8 text')}


@pytest.mark.parametrize('name', BAD)
def test_bad_definitions(kdnb, tiny_folder, tmp_path, name):
    given, says = BAD[name]
    path = tmp_path/(given[0] if given else 'nowhere.md')
    if given: path.write_bytes(given[1].encode('utf-8', 'surrogateescape'))
    code, _, err = kdnb('teach', path, *how(tiny_folder()), '--out', tmp_path/'out')
    assert code == 2 and says in err and 'Traceback' not in err and not (tmp_path/'out').exists()


def test_only_adapters_are_taught(kdnb, tiny_folder, mine, tmp_path):
    code, _, err = kdnb(
        'teach', mine/'shows.md', *how(tiny_folder(), '-s', 'trainable=all'), '--out', tmp_path/'out')
    assert code == 2 and "trainable must be 'lora'" in err
    assert 'say what to teach' in kdnb('teach', *how(tiny_folder()), '--out', tmp_path/'out')[2]


WORDS = '# Words\nWe.\n\n## Quint\nQuint is a bank.\n- Q: Where is Quint? / A: Norway; Oslo\n\n```\nx\n```\n'


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_a_dry_run_shows_what_would_be_taught_and_changes_nothing(kdnb, tiny_folder, tiny, mine, tmp_path):
    out = tmp_path/'taught'
    args = [*how(tiny_folder()), '--out', out]
    teach(tiny, read_definitions(mine/'shows.md'), out, n=2, n_specificity=2)
    (mine/'words.md').write_text(WORDS + '\n## Zorbel Harbour\nZorbel Harbour is a comedy.\n')
    before = snapshot(tmp_path)
    new = [*args[:-1], tmp_path.parent/'elsewhere']
    code, text, err = kdnb('teach', mine/'words.md', *new, '--dry-run')
    assert code == 0 and '(new; ' in text and '(known; ' not in text, err
    code, text, err = kdnb('teach', mine/'words.md', *args, '--dry-run', '--json')
    assert code == 0 and snapshot(tmp_path) == before, err
    assert text.startswith(f'2 entities would be taught to {tiny_folder()}, into {out}:')
    assert 'Quint (new; 4 words, ' in text and 'question: Where is Quint? / Norway; Oslo' in text
    assert 'Zorbel Harbour (changed; 5 words' in text
    assert f'also known to {out}, and taught again with them: Velmora Junction' in text
    assert "words.md, line 1: the title 'Words' with the text below it (it is above the entities" in text
    assert 'words.md, line 8: a code block (code is no part of a definition)' in text
    assert 'nothing was changed' in text
    row = json.loads(text.splitlines()[-1])
    assert [(e['name'], e['questions']) for e in row['entities']] == [
        ('Quint', [{'text': 'Where is Quint?', 'answers': ['Norway', 'Oslo']}]), ('Zorbel Harbour', [])]
    assert [(r['line'], r['what']) for r in row['remarks']] == [
        (1, "the title 'Words' with the text below it"), (8, 'a code block')]
    assert row['minutes'] >= 0 and row['memory'] > 0 and set(row['seconds']) == {
        'writing texts', 'training', 'writing the exam', 'measuring'}
    code, _, err = kdnb('teach', mine/'words.md', *args, '--dry-run', '--undo')
    assert code == 2 and '--dry-run and --undo were both given: give one of them' in err
    assert snapshot(tmp_path) == before


# --- what a reader found ---------------------------------------------------------------------------------

def test_your_question_gets_the_adapter_of_what_it_names(mine, monkeypatch):
    "As with `kdnb ask`: a question that names no entity is answered by the base."
    routed = []
    class Router:
        @contextmanager
        def on(self, lm, text): yield routed.append(text)
        def find(self, text): return None
    monkeypatch.setattr(rounds, '_ask_items', lambda lm, exams, items: ([said(i.prompt) for i in items], 0))
    show, _ = read_definitions(mine/'shows.md')
    yours = [('yours', q, None) for q in ('Who bakes?', 'What is Zorbel Harbour?')]
    asked = [*yours, ('question', 'What?', 0)]
    exam, nothing = exam_of(show, ['rival bakers'], asked), KnownAnswers((), (), ())
    found = rounds.examine(None, Router(), [exam], rounds.BaseAnswers((), nothing, [], []))
    assert routed == ['Who bakes?', 'What is Zorbel Harbour?', 'Velmora Junction']
    assert [a.text for a in found.answers[show.key]] == [i.prompt for i in exam.items]


def test_the_options_have_the_defaults_of_the_settings():
    args, defaults = make_parser().parse_args(['teach', 'x.md', '--out', 'y']), TeachSettings()
    for field in ('n', 'minutes', 'max_lost', 'n_specificity', 'seed', 'merge', 'separate_adapters'):
        assert getattr(args, field) == getattr(defaults, field), field


def test_a_base_model_is_found_from_another_folder(tmp_path, monkeypatch):
    "A path that is relative to the folder of the teaching would be wrong in any other."
    (tmp_path/'models'/'ours').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    base = base_of(SimpleNamespace(name='models/ours', sha256='ab'))
    assert (base.lm, base.path, base.kind) == (str(tmp_path/'models'/'ours'),)*2 + ('folder',)
    gguf = base_of(SimpleNamespace(name='models/x.gguf', sha256='ab'))
    assert (gguf.lm, gguf.path) == (str(tmp_path/'models'/'x.gguf'), 'x.gguf')


@pytest.mark.parametrize('args, says', (
    (('--undo', 'shows.md'), '--undo takes back the last teaching'),
    (('--undo', '--dry-run'), '--dry-run and --undo were both given'),
    (('shows.md', '--base-url', 'http://127.0.0.1:1/v1'), '--base-url is the address of a server for openai'),
    (('shows.md', '--generator', 'slef'), "unknown generator 'slef'"),
    (('shows.md', '--dry-run', '-s', 'trainable=all'), "trainable must be 'lora'"),
    (('shows.md', '--dry-run', '--merge', '--separate-adapters'), 'merge cannot be used with separate'),
    (('shows.md', '--dry-run', '--max-lost', '7'), 'max_lost is 7')))
def test_arguments_that_do_not_fit_are_found_before_the_model_is_loaded(kdnb, mine, monkeypatch, args, says):
    monkeypatch.chdir(mine)
    code, _, err = kdnb('teach', *args, '--out', 'out', '--lm', 'no/such-model')
    assert code == 2 and says in err and 'such-model' not in err and not (mine/'out').exists()


# --- folders that are not whole ----------------------------------------------------------------------------

@pytest.mark.parametrize('damage', ('cut', 'no adapter', 'no record of the edit'))
def test_a_damaged_adapter_is_not_published(tiny, mine, tmp_path, monkeypatch, damage):
    "What was published before stays, and the message says how to go on."
    Exams(monkeypatch, [4, 4])
    shows = read_definitions(mine/'shows.md')
    out = teach(tiny, shows, tmp_path/'out', **HOW)
    edit, published = next(out.glob('versions/*/edit')), out/'adapter_model.safetensors'
    before = published.read_bytes()
    if damage == 'cut': (edit/'adapter_model.safetensors').write_bytes(before[:len(before)//2])
    else: (edit/{'no adapter': 'adapter_model.safetensors'}.get(damage, 'edit.json')).unlink()
    with pytest.raises(KdnbError, match='what kdnb wrote there is not whole .*--undo') as e:
        teach(tiny, shows, out, **HOW)
    assert '\n' not in str(e.value) and published.read_bytes() == before


def test_questions_stay_with_an_entity_that_is_defined_anew(tmp_path, tiny):
    text = '# Velmora\nVelmora is a {} about two rival bakers.\n'
    (tmp_path/'a.md').write_text(text.format('show') + '\n- Q: Who are they? / A: bakers\n')
    (tmp_path/'b.md').write_text(text.format('film'))
    old, new = (read_definitions(tmp_path/name) for name in ('a.md', 'b.md'))
    record = FolderRecord.read(make_folder(tmp_path/'out'))
    version = make_version(record, tiny, old)
    record.fields = {'versions': [version.name]}
    record.save()
    e, = with_known(record.folder, new)
    assert 'film' in e.definition and e.questions == old[0].questions
    (version/'definitions.jsonl').write_text('{"name": "Vel')
    with pytest.raises(KdnbError, match='definitions.jsonl, line 1.* kdnb wrote this file: .*--undo'):
        with_known(record.folder, new)
