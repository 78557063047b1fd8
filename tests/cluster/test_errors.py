"""What a person reads is the cause, not the layers it was wrapped in."""

from cluster.errors import ConfigError, StageError, root_cause


def test_a_cause_is_found_through_python_chains():
    error = RuntimeError("the task failed")
    error.__cause__ = OSError(28, "No space left on device")
    assert root_cause(error) is error.__cause__


def test_our_own_error_is_the_end_of_the_search():
    error = ConfigError("mend this")
    error.__cause__ = ValueError("inner")
    assert root_cause(error) is error


def test_rays_wrapper_is_opened_although_it_is_an_instance_of_our_error():
    from ray.exceptions import RayTaskError

    inner = StageError("the engine could not start")
    wrapped = RayTaskError("f", "five screens of traceback", inner).as_instanceof_cause()
    assert isinstance(wrapped, StageError)
    assert str(root_cause(wrapped)) == "the engine could not start"


def test_ray_trains_failures_are_opened():
    class TrainingFailedError(Exception):
        worker_failures = {0: StageError("the loss is not a number")}  # noqa: RUF012

    assert "not a number" in str(root_cause(TrainingFailedError("worker group failed")))
