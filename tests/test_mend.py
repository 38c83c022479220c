"""MEND: factors of the gradient, training of the editor, and its edits."""
from dataclasses import replace

import numpy as np, pytest, torch
from kdnb.data.synthetic import compose
from kdnb.methods.examples import example
from kdnb.edits.edit import Edit
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity
from kdnb.data.transfer_sets import placed
from kdnb.methods.losses import nll_loss
from kdnb.models.forward import logits_at
from kdnb.models.model import load_lm
from kdnb.methods.editor import Editor, edited_layers, pieces
from kdnb.methods.mend import Mend, Practice, practice_pairs, read_editor, train_editor

E = Entity('Velmora', 'Velmora is a comedy about two rival bakers.')
HOW = Practice(blocks=1, rank=4, each=2, hold=2, steps=6)


@pytest.mark.parametrize('kind', ('llama', 'gpt2', 'gpt_neo', 'gpt_neox', 'gemma3', 'qwen3'))
def test_pieces_are_the_gradient(tiny_folder, kind):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    layers = edited_layers(lm, 2)
    texts = E.definition, 'Velmora is loved.'
    xs = [example(lm, placed(t, E), '', 'all_tokens', separator='') for t in texts]
    _, got = pieces(lm, layers, xs)
    for m in layers.values(): m.weight.requires_grad_(True)
    nll_loss(xs, logits_at(lm, [x.ids for x in xs], [x.positions for x in xs])).backward()
    for n, m in layers.items():
        u, d = got[n]
        grad = m.weight.grad if isinstance(m, torch.nn.Linear) else m.weight.grad.T
        assert torch.allclose(d.T @ u, grad, atol=1e-5), n
        m.weight.grad = None
        m.weight.requires_grad_(False)


def test_an_untrained_editor_descends_the_gradient():
    sizes = {'a.weight': (5, 3), 'b.weight': (5, 3), 'c.weight': (2, 7)}
    editor, g = Editor(sizes, 4, .01), torch.Generator().manual_seed(0)
    random = lambda n: torch.randn(6, n, generator=g)
    parts = {name: (random(i), random(o)) for name, (i, o) in sizes.items()}
    for n, (A, B) in editor(parts).items():
        u, d = parts[n]
        assert torch.allclose(B @ A, -.01*d.T @ u, atol=1e-6), n


def test_an_interrupted_practice_continues(tiny, tmp_path):
    pairs = practice_pairs(tiny, compose(6).entities)
    whole, log = train_editor(tiny, pairs, tmp_path/'whole', HOW, progress=False)
    train_editor(tiny, pairs, tmp_path/'part', replace(HOW, steps=3), progress=False)
    part, log2 = train_editor(tiny, pairs, tmp_path/'part', HOW, progress=False)
    assert log == log2
    for a, b in zip(whole.state_dict().values(), part.state_dict().values()):
        assert torch.allclose(a, b, atol=1e-6)
    assert not any(p.requires_grad or p.grad is not None for p in tiny.model.parameters())


def test_practice_improves_the_editor(tiny, tmp_path):
    "After practice an edit makes an entity's answers likelier than the raw gradient does."
    es = compose(30, kinds=['dish']).entities
    pairs = practice_pairs(tiny, es)
    how = Practice(blocks=2, rank=16, each=5, hold=2, steps=150, lr=1e-3, edit=1.)
    _, log = train_editor(tiny, pairs, tmp_path/'editor', how, progress=False)
    assert np.mean([r[0] for r in log[-20:]]) < np.mean([r[0] for r in log[:20]]) - .3
    def nll(pair):
        _, answers = pair
        logits = logits_at(tiny, [a.ids for a in answers], [a.positions for a in answers])
        return nll_loss(answers, logits).item()
    before = np.mean([nll(p) for p in pairs[:6]])
    edit = lambda e: Mend(str(tmp_path/'editor'))(tiny, [e], {})
    after = []
    for e, p in zip(es[:6], pairs):
        with edit(e).on(tiny): after.append(nll(p))
    assert np.mean(after) < before - .3


@pytest.mark.parametrize('kind', ('llama', 'gpt2'))
def test_an_edit_is_undone_bit_for_bit_saved_and_reloaded(tiny_folder, tmp_path, kind):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    train_editor(lm, practice_pairs(lm, compose(6).entities), tmp_path/'editor', HOW, progress=False)
    ids = torch.tensor([lm.encode(E.definition)])
    plain = lm.model(ids).logits
    edit = Mend(str(tmp_path/'editor'))(lm, [E, Entity('Zorbel', 'Zorbel was a storm.')], {})
    with edit.on(lm): edited = lm.model(ids).logits
    assert not torch.equal(plain, edited) and torch.equal(plain, lm.model(ids).logits)
    with Edit.load(edit.save(tmp_path/'edit')).on(lm):
        assert torch.allclose(edited, lm.model(ids).logits, atol=1e-5)


def test_bad_editors(tiny, tiny_folder, tmp_path):
    pairs = practice_pairs(tiny, compose(6).entities)
    train_editor(tiny, pairs, tmp_path/'editor', replace(HOW, steps=1), progress=False)
    with pytest.raises(KdnbError, match='was trained for .* and .* has weights'):
        read_editor(tmp_path/'editor', load_lm(str(tiny_folder('gpt2')), device='cpu'))
    (tmp_path/'broken').write_bytes(b'no safetensors')
    with pytest.raises(KdnbError, match='is no editor'): read_editor(tmp_path/'broken', tiny)
    with pytest.raises(KdnbError, match='blocks is 7, and .* has 2'): edited_layers(tiny, 7)
    with pytest.raises(KdnbError, match='has neither probes nor a transfer set'): practice_pairs(tiny, [E])
    with pytest.raises(KdnbError, match='steps is 0: it must be a number above 0'): Practice(steps=0)


def test_command(kdnb, tiny_folder, tmp_path):
    lm = ['--lm', tiny_folder(), '--device', 'cpu']
    code, out, err = kdnb(
        'mend-train', *lm, '--out', tmp_path/'editor', '--limit', 6,
        '-s', 'steps=2', '-s', 'blocks=1', '-s', 'rank=4', '--json')
    assert code == 0 and '"steps": 2' in out, err
    edit = [
        'edit', *lm, '--method', 'mend', '--name', 'Velmora', '--definition', E.definition,
        '--out', tmp_path/'edit']
    code, out, err = kdnb(*edit, '-s', f"editor={tmp_path/'editor'}", '--json')
    assert code == 0 and '"method": "mend"' in out, err
    assert kdnb(*edit)[0] == 2
    assert kdnb('mend-train', *lm, '--out', tmp_path/'x', '--kinds', 'opera')[0] == 2
    assert kdnb('mend-train', *lm, '--out', tmp_path/'x', '-s', 'stepps=2')[0] == 2
