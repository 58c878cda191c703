import pytest
from starlette.datastructures import Headers

from api.intake.job_class import class_of
from common.access.principal import Access, Principal
from common.canonical.errors import ErrorKind, GatewayError
from common.queue.jobs import JobClass

INTERACTIVE, BACKGROUND = JobClass
FREE, BOUND = Access(), Access(highest_class="background")


def asked(value: str | None, key: Access = FREE, tenant: Access = FREE, unsaid: JobClass = INTERACTIVE) -> JobClass:
    headers = Headers({"x-sluice-class": value} if value is not None else {})
    return class_of(headers, Principal("p", access=key, tenant_access=tenant), unsaid)


@pytest.mark.parametrize("unsaid", JobClass)
def test_what_a_request_names_is_its_class_else_what_its_route_is_for(unsaid):
    assert asked(None, unsaid=unsaid) is unsaid
    assert asked("interactive", unsaid=unsaid) is INTERACTIVE
    assert asked(" Background", unsaid=unsaid) is BACKGROUND


@pytest.mark.parametrize("value", ["", "urgent", "interactive, background", "0"])
def test_any_other_word_is_refused_by_name(value):
    with pytest.raises(GatewayError) as refused:
        asked(value)

    failed = refused.value.failed
    assert (failed.kind, failed.param, failed.code) == (ErrorKind.INVALID_REQUEST, "x-sluice-class", "invalid_header")
    assert "'interactive' or 'background'" in failed.message


@pytest.mark.parametrize("who", [{"key": BOUND}, {"tenant": BOUND}, {"key": BOUND, "tenant": BOUND}])
def test_a_key_or_a_tenant_may_be_for_background_work_alone(who):
    assert [asked(None, **who), asked("background", **who)] == [BACKGROUND, BACKGROUND]
    with pytest.raises(GatewayError) as refused:
        asked("interactive", **who)

    assert (refused.value.failed.kind, refused.value.failed.code) == (ErrorKind.PERMISSION_DENIED, "class_not_allowed")
