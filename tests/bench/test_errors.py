import pytest
from pydantic import Field, field_validator

from bench.errors import MAX_REASON, nearest, reason_of
from models.interface import Options


class Settings(Options):
    beam: int = Field(1, ge=1)
    """Beam size."""
    alpha: float = 0.6
    """Length normalisation."""

    @field_validator("alpha")
    @classmethod
    def _positive(cls, value):
        if value < 0:
            raise ValueError("must not be\nnegative")
        return value


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first line\nlast line"), "ValueError: first line"),
        (RuntimeError("\n \n  size  mismatch \n"), "RuntimeError: size mismatch"),
        (KeyError("ctc"), "KeyError: 'ctc'"),
        (AssertionError(), "AssertionError"),
        (SystemExit("bye"), "SystemExit: bye"),
    ],
    ids=["two-lines", "empty-lines-first", "key", "no-text", "exit"],
)
def test_a_reason_is_the_first_line_that_says_something(error, reason):
    assert reason_of(error) == reason


def test_a_long_reason_is_cut():
    reason = reason_of(ValueError("x" * 1000))
    assert reason == "ValueError: " + "x" * (MAX_REASON - len("ValueError: ") - 1) + "…"
    whole = "x" * (MAX_REASON - len("ValueError: "))
    assert reason_of(ValueError(whole)) == f"ValueError: {whole}"


def test_the_reason_of_a_validation_names_fields_and_what_is_wrong():
    with pytest.raises(ValueError) as caught:
        Settings(beam=0, alpha=-1.0)
    assert reason_of(caught.value) == (
        "ValidationError: beam: Input should be greater than or equal to 1; alpha: Value error, must not be negative"
    )


def test_the_nearest_name():
    assert nearest("baem", ["beam", "alpha"]) == "; did you mean 'beam'?"
    assert nearest("zzz", ["beam", "alpha"]) == ""
