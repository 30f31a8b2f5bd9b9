"""The corpus of each fuzz target is read without a fuzzer too."""

from pathlib import Path

import pytest
import record

CORPUS = Path(__file__).parent / "corpus" / "record"


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_a_record_is_sound_or_refused(path):
    record.check(path.read_bytes())
