"""That all processes end where one does, and say which."""

import signal
import time


def wait_until_joined(processes):
    for process in processes:
        while "joined" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()


def end_of(process, seconds):
    began = time.monotonic()
    output, error = process.communicate(timeout=60)
    assert time.monotonic() - began < seconds, output + error
    return process.returncode, [x for x in error.splitlines() if "Gloo" not in x]


def test_all_end_well_together(member):
    for process in [member(i, 3) for i in range(3)]:
        assert end_of(process, 60) == (0, [])


def test_where_one_is_killed_the_others_end_at_once_and_name_it(member):
    for killed in (2, 0):  # the first one, too, whom jax cannot do without
        processes = [member(i, 3, "--then", "lasts") for i in range(3)]
        wait_until_joined(processes)
        processes[killed].send_signal(signal.SIGKILL)
        processes.pop(killed).communicate()
        for process in processes:
            code, lines = end_of(process, 10)
            assert code == 1
            # Before it what jax says of the death of the first one.
            assert lines[-1] == (
                f"process {killed} went silent: this one ends. Start all again with the same "
                "command; it goes on from step 4."
            )
            assert killed == 0 or len(lines) == 1


def test_where_one_hangs_the_others_end_after_a_while(member):
    lasts = member(0, 2, "--then", "lasts", "--patience", 3)
    stops = member(1, 2, "--then", "stops", "--patience", 3)
    wait_until_joined([lasts, stops])
    code, lines = end_of(lasts, 30)
    assert code == 1
    assert lines[-1].startswith("process 1 gave no sign of life for 3 s: this one ends. Start all")


def test_an_error_of_one_ends_all_and_is_told_by_all(member):
    lasts = member(0, 2, "--then", "lasts")
    refuses = member(1, 2, "--then", "refuses")
    assert end_of(refuses, 60) == (2, ["ValueError: no such file here."])
    code, (line,) = end_of(lasts, 10)
    assert code == 1 and line.startswith("process 1 failed (no such file here.): this one ends.")


def test_an_error_that_all_have_is_told_by_each_as_its_own(member):
    for process in [member(i, 2, "--then", "refuses") for i in range(2)]:
        assert end_of(process, 60) == (2, ["ValueError: no such file here."])
