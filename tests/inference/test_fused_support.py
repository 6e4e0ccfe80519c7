"""The instructions of the fused steps are chosen by the processor, or lower ones by HANMO_CPU."""

import numba
import pytest

from hanmo.errors import ConfigError
from hanmo.inference.fused import support

AVX2, AVX512 = "+avx2,+fma,-avx512f", "+avx2,+fma,+avx512f,+avx512bw"


@pytest.mark.parametrize(
    ("features", "best"),
    [
        ("+sse2,-avx2", None),
        (AVX2, "avx2"),
        (AVX512, "avx512"),
        (f"{AVX512},+avx512vnni", "vnni"),
        (f"{AVX512},+amx-tile,+amx-int8", "avx512"),
        (f"{AVX512},+avx512vnni,+amx-tile,+amx-int8", "amx"),
    ],
)
def test_the_best_instructions_are_chosen(features, best, monkeypatch):
    monkeypatch.delenv("HANMO_CPU", raising=False)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    assert support.instructions() == best


def test_lower_instructions_can_be_asked_for_and_no_others(monkeypatch):
    monkeypatch.setattr(numba.config, "CPU_FEATURES", AVX512)
    monkeypatch.setenv("HANMO_CPU", "avx2")
    assert support.instructions() == "avx2"
    for wrong in ("vnni", "sse9"):
        monkeypatch.setenv("HANMO_CPU", wrong)
        with pytest.raises(ConfigError, match=rf"HANMO_CPU is '{wrong}'; this machine has avx2, avx512$"):
            support.instructions()
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "")
    with pytest.raises(ConfigError, match="this machine has none of its values"):
        support.instructions()
