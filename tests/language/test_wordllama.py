"""WordLlama's table as a text encoder."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from wordllama.inference import WordLlamaInference

from gat_sweep.compute import text_encoder_cost
from gat_sweep.errors import UserError
from gat_sweep.language.encoder import PADDING
from gat_sweep.language.load import load_text_encoder


def test_wordllama_is_the_packages_own_table() -> None:
    """Sentences equal what the package itself computes of the same files."""
    encoder = load_text_encoder("wordllama", 32)
    root = Path(find_spec("wordllama").submodule_search_locations[0])
    tokenizer = Tokenizer.from_file(str(root / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    own = WordLlamaInference(encoder.table.numpy(), tokenizer)
    texts = ["grinning face", "man health worker: medium skin tone", "flag: Cote d'Ivoire"]
    expected = torch.from_numpy(own.embed(texts, norm=True))
    found = encoder.encode(torch.from_numpy(encoder.ids(texts)[0]))
    assert torch.allclose(found.sentence, expected, atol=1e-3)


def test_words_are_rows_and_padding_is_nothing() -> None:
    encoder = load_text_encoder("wordllama", 4)
    ids, cut = encoder.ids(["grinning face", "", "one two three four five six"])
    assert cut.tolist() == [False, False, True] and ids.dtype == "int32"
    assert (ids[1] == PADDING).all() and (ids[2] != PADDING).all()
    found = encoder.encode(torch.from_numpy(ids))
    assert torch.equal(found.words[0, 0], encoder.table[int(ids[0, 0])])
    assert not found.words[1].any() and not found.sentence[1].any() and not found.weight[1].any()
    assert torch.allclose(found.sentence[[0, 2]].norm(dim=1), torch.ones(2))
    assert text_encoder_cost("wordllama", None, 4).params == encoder.params


def test_a_folder_is_refused_rather_than_ignored() -> None:
    """As `--set text.folder` and `sample --text-encoder` could give one."""
    with pytest.raises(UserError, match="'wordllama' comes with its package; leave out the folder /elsewhere"):
        load_text_encoder("wordllama", folder="/elsewhere")
