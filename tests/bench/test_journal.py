import json

from bench.journal import Failure, Journal
from bench.timing import Point, Timing

A, B = Point("a", 1), Point("b", 8)


def timing(index, point):
    return Timing(index, point, durations=(3, 4), tokens=(1, 2), tied=1, wall=0.5, foreign=0.1, parts={"tokenise": 9})


def write(path):
    """Two whole rounds, a failure, and a third round that is cut after its first timing."""
    journal = Journal(path, "here")
    for index in range(2):
        journal.add(timing(index, A))
        journal.add(timing(index, B))
        journal.complete(index)
    journal.fail(B, Failure("oom", "no memory"))
    journal.add(timing(2, A))


def test_whole_rounds_and_failures_are_read_back(tmp_path):
    write(tmp_path / "j")
    journal = Journal(tmp_path / "j", "here")
    assert journal.timings == [timing(i, p) for i in range(2) for p in (A, B)]
    assert journal.failures == {B: Failure("oom", "no memory")}
    assert journal.next_round == 2


def test_a_journal_cut_anywhere_gives_the_rounds_before_the_cut_and_can_be_continued(tmp_path):
    write(tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    completions = [
        end for end, line in zip(ends, content.splitlines(), strict=True) if b"complete" in line
    ]  # ends of the lines that complete a round
    assert len(completions) == 2
    cuts = {*range(0, len(content), 41), *ends[:-1], *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}
    for cut in sorted(cuts):
        path = tmp_path / "cut"
        path.write_bytes(content[:cut])
        rounds = sum(end <= cut for end in completions)
        journal = Journal(path, "here")
        assert journal.next_round == rounds
        assert len(journal.timings) == 2 * rounds
        if cut % 2:
            journal.add(timing(rounds, A))
            journal.complete(rounds)
            again = Journal(path, "here")
            assert again.next_round == rounds + 1
            assert again.timings == journal.timings
            assert all(json.loads(line) for line in path.read_text().splitlines())


def test_times_of_another_machine_do_not_count(tmp_path):
    write(tmp_path / "j")
    journal = Journal(tmp_path / "j", "elsewhere")
    assert (journal.timings, journal.failures, journal.next_round) == ([], {}, 0)


def test_the_first_failure_of_a_point_stands(tmp_path):
    journal = Journal(tmp_path / "j", "here")
    journal.fail(A, Failure("timeout", "first"))
    journal.fail(A, Failure("failed", "second"))
    assert Journal(tmp_path / "j", "here").failures == {A: Failure("timeout", "first")}
