"""How several processes find each other, on loopback."""

import re
import socket

import pytest

from avs_jax import errors, hosts


def refusals(*processes):
    """The one line that each process ends with, with status 2."""
    lines = []
    for process in processes:
        output, error = process.communicate(timeout=60)
        assert process.returncode == 2, output + error
        (line,) = [x for x in error.splitlines() if "Gloo" not in x]
        lines.append(line)
    return lines


@pytest.mark.parametrize(
    "place, error",
    [
        (("h:1", None, 2), "--process_id missing: wanted --coordinator HOST:PORT --process_id I"),
        ((None, 0, None), "--coordinator and --num_processes missing"),
        (("h:1", 2, 2), "--process_id 2 of --num_processes 2: wanted 0 to N - 1"),
        (("h:1", -1, 2), "--process_id -1 of --num_processes 2: wanted 0 to N - 1"),
        (("h:1", 0, 0), "--process_id 0 of --num_processes 0: wanted 0 to N - 1"),
        (("h", 0, 2), "--coordinator h: wanted HOST:PORT"),
        ((":80", 0, 2), "--coordinator :80: wanted HOST:PORT"),
        (("h:99999", 0, 2), "--coordinator h:99999: wanted HOST:PORT"),
    ],
    ids=str,
)
def test_a_place_that_cannot_be_is_refused(place, error):
    with pytest.raises(errors.BadValueError, match=re.escape(error)):
        hosts.read_job(False, *place)


def test_found_and_told_at_once_is_refused():
    with pytest.raises(errors.BadValueError, match="use one of them"):
        hosts.read_job(True, "h:1", 0, 2)


def test_one_process_is_no_job_and_the_environment_tells_where_jax_does_not(monkeypatch):
    assert hosts.read_job(False, None, None, None) is None
    assert hosts.read_job(True, None, None, None) == hosts.Job()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "h:1")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(errors.BadValueError, match="JAX_NUM_PROCESSES=two: wanted a number"):
        hosts.read_job(True, None, None, None)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert hosts.read_job(True, None, None, None) == hosts.Job("h:1", 1, 2)


def test_processes_with_different_commands_are_told_the_field(member, address):
    ends = refusals(
        member(0, 2, "--field", "model.dim=1"),
        member(1, 2, "--field", "model.dim=2"),
    )
    for line in ends:
        assert "model.dim is '1' for process 0 and '2' for process 1" in line


def test_a_process_id_that_is_given_twice_is_named_to_all(member, address):
    for line in refusals(*(member(i, 3) for i in (0, 1, 1))):
        assert re.search(r"--process_id 1 is given twice: to process \d+ on \S+ and to pro", line)


def test_a_second_process_0_is_told_that_its_port_is_taken(member, address):
    with socket.create_server(("", int(address.partition(":")[2]))):
        (line,) = refusals(member(0, 2))
    assert "process 0 cannot listen on port" in line and "is --process_id 0 given twice" in line


def test_processes_that_disagree_about_their_number_are_refused(member, address):
    for line in refusals(member(0, 2), member(1, 3)):
        assert re.search(r"--num_processes is 3 for process \d+ on \S+ and 2 for process", line)


def test_a_coordinator_that_is_not_there_is_not_waited_for_for_ever(member, address):
    alone = member(1, 2, "--wait_seconds", 1)
    nowhere = member(1, 2, "--wait_seconds", 1, address="nowhere.invalid:80")
    line, other = refusals(alone, nowhere)
    assert "was not reached within 1 s (Connection refused); start --process_id 0" in line
    assert "--coordinator nowhere.invalid:80: no such host" in other


def test_processes_that_do_not_come_are_named(member, address):
    (line,) = refusals(member(0, 3, "--wait_seconds", 1))
    assert "--process_id 1, 2 of 3 did not come" in line


def test_no_cluster_to_be_found_is_one_line(start):
    (line,) = refusals(start("--distributed"))
    assert "--distributed: jax finds no cluster here" in line
