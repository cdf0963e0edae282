"""Exposed communication against counting tenths of a second, and the layouts that a number of devices can form."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tools.cluster_check import fitting, name_of
from tools.exposed import exposed_seconds, is_communication

SPANS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: (float(pair[0]), float(pair[0] + pair[1]))),
    max_size=8,
)


@given(SPANS, SPANS)
def test_exposed_is_covered_by_communication_alone(
    communication: list[tuple[float, float]], computation: list[tuple[float, float]]
) -> None:
    def covered(spans: list[tuple[float, float]], second: int) -> bool:
        return any(a <= second < b for a, b in spans)

    expected = sum(covered(communication, s) and not covered(computation, s) for s in range(41))
    assert exposed_seconds(communication, computation) == expected


def test_names_of_collectives() -> None:
    assert all(
        map(
            is_communication,
            ("ncclDevKernel_AllReduce_Sum_bf16", "gloo:all_to_all", "HcclAllReduce", "c10d::broadcast_"),
        )
    )
    assert not any(map(is_communication, ("aten::mm", "sm90_xmma_gemm", "void flash_fwd_kernel")))


def test_layouts_by_number_of_devices() -> None:
    assert [name_of(options, 2) for options in fitting(2)] == [
        "DP2",
        "TP2 x DP1",
        "TP2+SP x DP1",
        "CP2 x DP1",
        "PP2 x DP1",
        "PP2 x VPP2 x DP1",
    ]
    assert len(fitting(8)) == 14 and "TP2 x CP2 x PP2 x DP1" in [name_of(options, 8) for options in fitting(8)]
    assert fitting(3) == [{}]
