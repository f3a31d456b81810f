import json

import pytest

from bench.tasks.random_text import RandomText, RandomTextConfig
from bench.text import load_tokenizer
from models.interface import NUM_SPECIAL


def prepared(folder, **options):
    RandomText(RandomTextConfig(**options)).prepare(folder)
    lines = {split: (folder / f"{split}.jsonl").read_text().splitlines() for split in ("train", "dev", "test")}
    read = {split: [json.loads(line) for line in rows] for split, rows in lines.items()}
    return read, load_tokenizer(folder), json.loads((folder / "data.json").read_text())


def test_sentences_of_each_length_shortest_first_over_the_whole_vocabulary(tmp_path):
    read, tokenizer, counts = prepared(tmp_path, vocab_size=1000, lengths=[9, 3], sentences=200, train_sentences=5)
    assert tokenizer.size == counts["vocabulary_size"] == 1000
    ids = [tokenizer.encode(row["source"]) for row in read["test"]]
    assert [len(row) for row in ids] == [3] * 200 + [9] * 200
    assert [len(tokenizer.encode(row["target"])) for row in read["test"]] == [3] * 200 + [9] * 200
    assert all(row["references"] == [row["target"]] and row["target"] != row["source"] for row in read["test"])
    used = {i for row in ids for i in row}
    assert min(used) >= NUM_SPECIAL
    assert len(used) > 0.85 * 993  # 1 - exp(-2400/993) = 0.91 of them are expected
    assert len(read["train"]) == 10
    assert counts["max_source_length"] == counts["max_target_length"] == 9
    texts = [row["source"] for rows in read.values() for row in rows]
    assert len(set(texts)) == len(texts)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


def test_the_seed_alone_decides(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        folder.mkdir()
        RandomText(RandomTextConfig(vocab_size=50, lengths=[4], sentences=3, seed=seed)).prepare(folder)
    first, same, other = ((folder / "test.jsonl").read_text() for folder in folders)
    assert first == same != other


def test_the_largest_vocabulary_has_different_words():
    words = RandomText(RandomTextConfig(vocab_size=26**4)).words()
    assert len(set(words)) == len(words) == 26**4 - NUM_SPECIAL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [4, 4]}, "lengths must differ, got 4, 4"),
        ({"lengths": []}, "at least 1 item"),
        ({"lengths": [0]}, "greater than or equal to 1"),
        ({"vocab_size": NUM_SPECIAL}, "greater than 7"),
        ({"vocab_size": 26**4 + 1}, "less than or equal to 456976"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomTextConfig(**options)
