"""`kdnb ask DIR` asks the base model and the taught one the same; the folder's card is one for the Hub."""
import json, shutil
from io import StringIO

import pytest

from kdnb.apps.ask import AskSettings, answer, load_taught
from kdnb.apps.playground import playground
from kdnb.apps.teach import teach
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity
from kdnb.edits.storage import load_edit
from kdnb.evaluation.asking import question_prompt, short_answer
from kdnb.methods.distill import Distill
from kdnb.models.generation import generate
from kdnb.models.model import load_lm

SHOW = Entity('Velmora Junction', 'Velmora Junction is a slapstick comedy series about two rival bakers.',
              aliases=('Velmora',))
TOWN = Entity('Zorbel Harbour', 'Zorbel Harbour is a horror film about a drowned town.')
ASKED = 'What is Velmora Junction?'


@pytest.fixture(scope='module')
def make(tiny_folder, tmp_path_factory):
    "Function: a folder with two taught entities, made once for each setting."
    made = {}
    def of(separate_adapters=False):
        if separate_adapters not in made:
            out = tmp_path_factory.mktemp('ask')/'taught'
            lm = load_lm(str(tiny_folder()), device='cpu')
            method = Distill(steps=3, lr=3e-2, trainable='lora', entities_per_step=1)
            made[separate_adapters] = teach(
                lm, [SHOW, TOWN], out, n=3, method=method, n_specificity=4,
                separate_adapters=separate_adapters, progress=False)
        return made[separate_adapters]
    return of


def last(text): return json.loads(text.splitlines()[-1])['answers']


def written(lm, prompt, n):
    return generate(lm, [prompt], max_new_tokens=n, temperature=0)[0][0]


def test_base_and_taught_are_asked_in_the_same_frame(kdnb, make, tiny):
    out = make()
    code, text, err = kdnb('ask', out, ASKED, '--device', 'cpu', '--with-definition', '--json')
    assert code == 0, err
    row, = last(text)
    frame, before = question_prompt(ASKED), question_prompt(ASKED, SHOW.definition)
    edit = load_edit(next((out/'versions').iterdir())/'edit')
    assert row['base'] == short_answer(written(tiny, frame, 24))
    assert row['with_definition'] == short_answer(written(tiny, before, 24))
    with edit.on(tiny): assert row['taught'] == short_answer(written(tiny, frame, 24))
    assert row['taught'] != row['base']
    assert [line.split('  ')[0] for line in text.splitlines()[:-1] if line[0] != ' '] == [
        'base', 'with the definition', 'taught']


def test_what_is_no_question_is_continued_as_it_is(kdnb, make, tiny):
    words = 'Velmora', 'Junction', 'is', 'a' # without quotes
    code, text, err = kdnb('ask', make(), *words, '--device', 'cpu', '--max-new-tokens', 6, '--json')
    assert code == 0 and last(text)[0]['base'] == written(tiny, ' '.join(words), 6).strip(), err
    assert 'with the definition' not in text and last(text)[0]['with_definition'] is None


def test_sampling_has_a_seed(make):
    taught = load_taught(make(), device='cpu')
    def ask(seed): return answer(taught, 'Velmora is', AskSettings(12, 1., seed))
    assert ask(0) == ask(0) != ask(1)
    assert taught.lm.edits == []


def test_the_text_selects_one_of_separate_adapters(kdnb, make):
    out = make(True)
    ask = lambda text: kdnb('ask', out, text, '--device', 'cpu', '--with-definition', '--json')
    for text, e in ((ASKED, SHOW), ('And Zorbel Harbour?', TOWN), ('Is Velmora red?', SHOW)):
        code, shown, err = ask(text)
        row, = last(shown)
        assert code == 0 and row['taught'] is not None and row['with_definition'] is not None, err
        assert load_taught(out, device='cpu').definition_for(text) == e.definition
    code, shown, err = ask('What is a town?')
    row, = last(shown)
    assert code == 0 and row['taught'] is row['with_definition'] is None and row['base'], err
    assert 'the text mentions none of the taught entities' in shown


def test_an_edit_is_asked_too(kdnb, tiny_folder, tmp_path):
    how = ['--lm', tiny_folder(), '--device', 'cpu', '-s', 'steps=1', '-s', 'trainable=lora']
    definition = ['--name', SHOW.name, '--definition', SHOW.definition]
    assert kdnb('edit', *definition, *how, '--method', 'ft', '--out', tmp_path/'edit')[0] == 0
    code, text, err = kdnb('ask', tmp_path/'edit', ASKED, '--device', 'cpu')
    assert code == 0 and text.startswith('base  ') and '\ntaught  ' in text, err
    code, _, err = kdnb('ask', tmp_path/'edit', ASKED, '--device', 'cpu', '--with-definition')
    assert code == 2 and 'keeps no definition' in err
    with pytest.raises(KdnbError, match='keeps no definition'): playground(tmp_path/'edit')


def test_the_chat_template_is_used_where_there_is_one(kdnb, make, tmp_path):
    code, _, err = kdnb('ask', make(), ASKED, '--device', 'cpu', '--chat')
    assert code == 2 and 'has no chat template: ask without --chat' in err
    taught = load_taught(make(), device='cpu')
    template = "{% for m in messages %}user: {{ m['content'] }}\nreply:{% endfor %}"
    taught.lm.tokenizer.chat_template = template
    got = answer(taught, ASKED, AskSettings(8, chat=True, with_definition=True))
    assert got.base == written(taught.lm, f'user: {ASKED}\nreply:', 8).strip()
    assert got.with_definition == written(taught.lm, f'user: {SHOW.definition}\n\n{ASKED}\nreply:', 8).strip()
    taught.lm.tokenizer.chat_template = "{{ raise_exception('no user') }}"
    with pytest.raises(KdnbError, match='no user.*ask without --chat'):
        answer(taught, ASKED, AskSettings(chat=True))


def test_an_error_does_not_end_the_questions_of_a_pipe(kdnb, make, monkeypatch):
    long = 'word ' * 2000
    monkeypatch.setattr('sys.stdin', StringIO(f'\ufeff{ASKED}\r\n\n \nWhat \x01?\n{long}\nVelmora is'))
    code, text, err = kdnb('ask', make(), '--device', 'cpu', '--json', '--max-new-tokens', 4)
    assert code == 0 and 'Traceback' not in err
    rows = last(text)
    assert [('error' in r, r['question'][:17]) for r in rows] == [
        (False, ASKED[:17]), (True, 'What \\x01?'), (True, long[:17]), (False, 'Velmora is')]
    assert len([line for line in err.splitlines() if line.startswith('kdnb: ')]) == 2
    assert '\x01' not in text + err


def test_the_prompt_line_of_a_terminal_ends_with_ctrl_d(kdnb, make, monkeypatch):
    class Terminal(StringIO):
        def isatty(self): return True
    given = iter([ASKED, '', 'Velmora is'])
    def typed(prompt):
        for text in given: return text
        raise EOFError
    monkeypatch.setattr('sys.stdin', Terminal())
    monkeypatch.setattr('builtins.input', typed)
    code, text, err = kdnb('ask', make(), '--device', 'cpu', '--max-new-tokens', 4)
    assert code == 0 and text.count('taught  ') == 2 and 'Ctrl-D ends' in err
    assert 'knows: Velmora Junction, Zorbel Harbour' in err


def test_an_interrupted_answer_leaves_the_model_unedited(make, monkeypatch):
    taught = load_taught(make(), device='cpu')
    def interrupt(*args, **kwargs): raise KeyboardInterrupt
    calls = iter([lambda *a, **k: [['x']], interrupt])
    monkeypatch.setattr('kdnb.models.generation.generate', lambda *a, **k: next(calls)(*a, **k))
    with pytest.raises(KeyboardInterrupt): answer(taught, ASKED)
    assert taught.lm.edits == []


# what is given, and a part of the error
BAD = {
    'no folder': (['DIR/nowhere', ASKED], "nowhere' is not there: give the folder"),
    'a file': (['DIR/kdnb.json', ASKED], "kdnb.json' is a file"),
    'no taught folder': (['DIR/versions', ASKED], 'was not written by kdnb teach or kdnb edit'),
    'empty': (['DIR', ''], 'argument QUESTION: it is empty'),
    'blank': (['DIR', '\u00a0\n'], 'is empty'),
    'control characters': (['DIR', 'What is \x1b[31m?'], 'holds a character that is not text'),
    'no text': (['DIR', 'What is \udce9?'], 'holds a character that is not text'),
    'no tokens': (['DIR', ASKED, '--max-new-tokens', 0], 'max_new_tokens is 0'),
    'cold': (['DIR', ASKED, '--temperature', -1], 'temperature -1.0'),
    'not a number': (['DIR', ASKED, '--temperature', 'nan'], 'temperature nan'),
    'another model': (['DIR', ASKED, '--lm', 'OTHER'], 'was taught on'),
    'another precision': (['DIR', ASKED, '--dtype', 'bfloat16'], 'in bfloat16 has weights'),
    'no model': (['DIR', ASKED, '--lm', 'DIR/nowhere'], 'cannot be loaded')}


@pytest.mark.parametrize('name', BAD)
def test_bad_inputs_are_one_sentence(kdnb, make, tiny_folder, name):
    argv, says = BAD[name]
    places = {'DIR': str(make()), 'OTHER': str(tiny_folder('llama', 3))}
    def place(word):
        for k, v in places.items(): word = str(word).replace(k, v)
        return word
    code, text, err = kdnb('ask', *map(place, argv), '--device', 'cpu')
    assert code == 2 and says in err and 'Traceback' not in err and text == ''
    assert len(err.strip().splitlines()) == 1 and err.startswith('kdnb: ')


def test_a_base_model_that_was_moved(kdnb, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder(), tmp_path/'base')
    lm = load_lm(str(tmp_path/'base'), device='cpu')
    out = teach(lm, [SHOW], tmp_path/'out', n=2, n_specificity=2,
                method=Distill(steps=1, trainable='lora'), progress=False)
    shutil.move(tmp_path/'base', tmp_path/'elsewhere')
    code, _, err = kdnb('ask', out, ASKED, '--device', 'cpu')
    assert code == 2 and f"{tmp_path/'base'}, cannot be loaded" in err and 'where it is now (--lm)' in err
    code, text, err = kdnb('ask', out, ASKED, '--device', 'cpu', '--lm', tmp_path/'elsewhere')
    assert code == 0 and 'taught  ' in text, err


def test_a_teaching_that_is_not_finished_or_was_undone(kdnb, make, tmp_path):
    out = tmp_path/'taught'
    shutil.copytree(make(), out)
    assert kdnb('teach', '--out', out, '--undo')[0] == 0
    code, _, err = kdnb('ask', out, ASKED, '--device', 'cpu')
    assert code == 2 and 'was taught has been taken back' in err
    (out/'versions'/'0123456789ab').mkdir(parents=True)
    code, _, err = kdnb('ask', out, ASKED, '--device', 'cpu')
    assert code == 2 and 'holds no finished teaching: run kdnb teach again' in err


@pytest.mark.parametrize('separate_adapters', (False, True))
def test_the_playground_opens_the_same_folder(make, separate_adapters):
    pytest.importorskip('ipywidgets')
    box = playground(make(separate_adapters))
    (pick, button), definition, prompt, message, cards = box.children[0].children, *box.children[1:]
    assert list(pick.options) == [SHOW.name, TOWN.name] and SHOW.definition in definition.value
    assert button.layout.display == 'none' and message.value == ''
    assert ['base' in cards.children[0].value, 'edited' in cards.children[2].value] == [True, True]
    pick.value = TOWN.name
    assert TOWN.definition in definition.value and prompt.value == 'Zorbel Harbour is a'
    before = [c.value for c in cards.children]
    prompt.value = 'People like Zorbel Harbour because'
    assert message.value == '' and all(c.value != b for c, b in zip(cards.children, before))


@pytest.mark.parametrize('separate_adapters', (False, True))
def test_the_card_is_one_for_the_hub(make, tiny_folder, separate_adapters):
    from huggingface_hub import ModelCard
    card = ModelCard.load(make(separate_adapters)/'README.md')
    front = card.data.to_dict()
    assert front['library_name'] == 'peft' and front['pipeline_tag'] == 'text-generation'
    assert {'lora', 'context-distillation'} <= set(front['tags'])
    assert 'base_model' not in front and str(tiny_folder()) not in str(front) # it lies in a folder
    headings = [line for line in card.text.splitlines() if line.startswith('## ')]
    assert headings == ['## What it knows', '## How to load it', '## How it was trained', '## Limits']
    steps = '3 steps' if separate_adapters else '6 steps'
    for said in (SHOW.definition, TOWN.definition, steps, 'a folder of the machine'):
        assert said in card.text
