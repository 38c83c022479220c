"""A model folder or file is data: nothing in it runs, nothing of it is dropped without a word, and whatever cannot be right is refused."""
import pytest
from kdnb.lm import load_lm, score_candidates
from zoo import NAMES

CAUSAL = [n for n in NAMES if n not in ('bert', 'bart')]
LEFTS, CANDIDATES = ['The capital of France is', 'A baby cat'], [['Paris', 'a town of many rivers'], ['kitten', 'river']]


@pytest.mark.parametrize('name', CAUSAL)
def test_every_causal_model_of_the_zoo_is_asked(zoo, name):
    lm = load_lm(str(zoo(name)), device='cpu')
    got = score_candidates(lm, LEFTS, CANDIDATES)
    assert all(s < 0 for ss in got for s in ss)


def test_a_gguf_file_gives_what_the_same_weights_give_in_a_folder(zoo):
    file, folder = (load_lm(str(zoo(n)), device='cpu') for n in ('gguf', 'llama'))
    assert file.encode('The town') == folder.encode('The town')
    assert score_candidates(file, LEFTS, CANDIDATES) == score_candidates(folder, LEFTS, CANDIDATES)
