import pytest
from starlette.datastructures import Headers

from api.intake.job_class import class_of
from common.access.principal import Access, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.queue.jobs import JobClass

INTERACTIVE, BACKGROUND = JobClass
FREE, BOUND = Access(), Access(highest_class="background")


def job_class_of(value: str | None, key: Access = FREE, tenant: Access = FREE, default: JobClass = INTERACTIVE) -> JobClass:
    headers = Headers({"x-sluice-class": value} if value is not None else {})
    return class_of(headers, Principal("p", access=key, tenant_access=tenant), default)


@pytest.mark.parametrize("default", JobClass)
def test_what_a_request_names_is_its_class_else_what_its_route_is_for(default):
    assert job_class_of(None, default=default) is default
    assert job_class_of("interactive", default=default) is INTERACTIVE
    assert job_class_of(" Background", default=default) is BACKGROUND


@pytest.mark.parametrize("value", ["", "urgent", "interactive, background", "0"])
def test_any_other_word_is_refused_by_name(value):
    with pytest.raises(GatewayError) as refused:
        job_class_of(value)

    failed = refused.value.failed
    assert (failed.kind, failed.param, failed.code) == (ErrorKind.INVALID_REQUEST, "x-sluice-class", "invalid_header")
    assert "'interactive' or 'background'" in failed.message


@pytest.mark.parametrize("who", [{"key": BOUND}, {"tenant": BOUND}, {"key": BOUND, "tenant": BOUND}])
def test_a_key_or_a_tenant_may_be_for_background_work_alone(who):
    assert [job_class_of(None, **who), job_class_of("background", **who)] == [BACKGROUND, BACKGROUND]
    with pytest.raises(GatewayError) as refused:
        job_class_of("interactive", **who)

    assert (refused.value.failed.kind, refused.value.failed.code) == (ErrorKind.PERMISSION_DENIED, "class_not_allowed")
