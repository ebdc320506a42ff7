"""The worker's repairs of superqt, each against what it repairs."""

import threading

import pytest
from qtpy.QtCore import QObject

from napari_xrai.session import ReconstructionError
from napari_xrai.widgets.worker import Job, start_worker


class CountingJob(Job):
    def __init__(self, error=None):
        super().__init__()
        self.error, self.cleaned_in, self.steps = error, None, 0

    def run(self):
        try:
            while True:
                self.steps += 1
                if self.error is not None and self.steps == 3:
                    raise self.error
                yield
        finally:
            self.cleaned_in = threading.current_thread()


@pytest.fixture
def heard(qapp):
    class Heard(QObject):
        errors, ends = [], []

    heard = Heard()
    heard.errors, heard.ends = [], []
    return heard


def run(heard, job):
    return start_worker(heard, job, lambda job, error: heard.errors.append(error), heard.ends.append)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), MemoryError(), ValueError("no"), OSError("disk")])
def test_every_error_arrives_and_ends_the_worker(qtbot, heard, error):
    job = CountingJob(error)
    run(heard, job)
    qtbot.waitUntil(lambda: heard.ends == [job], timeout=30_000)
    (got,) = heard.errors
    expected = ReconstructionError if isinstance(error, RuntimeError) else type(error)
    assert type(got) is expected
    assert str(got) == str(error)
    assert job.finished.is_set()


def test_quit_runs_the_generators_finally_in_the_worker(qtbot, heard):
    job = CountingJob()
    worker = run(heard, job)
    qtbot.waitUntil(lambda: job.steps > 10, timeout=30_000)
    worker.quit()
    qtbot.waitUntil(lambda: heard.ends == [job], timeout=30_000)
    assert job.cleaned_in is not None
    assert job.cleaned_in is not threading.main_thread()
    assert heard.errors == []
