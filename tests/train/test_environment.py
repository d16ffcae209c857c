"""What the log says about machines."""

from pdfx.distributed.agreement import describe_machines


def test_ranks_are_told_by_machine_and_device():
    places = [("n1", "H100"), ("n1", "H100"), ("n2", "H100"), ("n1", "A100"), ("n2", "H100")]
    assert (
        describe_machines(places) == "5 ranks on 2 machines: n1 ranks 0-1, 3 on A100 and H100; n2 ranks 2, 4 on H100."
    )
