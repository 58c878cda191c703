"""Large requests on a running gateway: refused while there is no room, served when there is, and everything is given back."""

from pathlib import Path

import orjson

from tests.support.fleet import CHAT, PATH_OF, RawClient, body_of, fleet, headers_of, until

MIB = 2**20


def prompt(size: int) -> bytes:
    return orjson.dumps(body_of(CHAT, "demo-n2-d0", text="x" * size))


def test_what_does_not_fit_is_told_to_come_back_and_does(tmp_path: Path):
    large = prompt(3 * MIB)
    with fleet(tmp_path, SLUICE_BODIES_BYTES_MAX=str(4 * MIB), SLUICE_BODY_BYTES_MAX=str(4 * MIB)) as found:
        url = found.url + PATH_OF[CHAT]
        headers = headers_of(content_type="application/json")
        with RawClient(found.ports[0]) as slow:
            slow.send("POST", PATH_OF[CHAT], {**headers, "content-length": str(len(large))}, large[:MIB])
            until(lambda: found.metrics(found.ports[0])["sluice_body_bytes"] == len(large), "its place is taken")

            refused = found.client.post(url, content=prompt(2 * MIB), headers=headers)
            small = found.client.post(url, content=prompt(1000), headers=headers)
            slow.send_bytes(large[MIB:])
            slow.read_until(b'"finish_reason"')

        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "bodies_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        assert small.status_code == 200
        assert slow.received.startswith(b"HTTP/1.1 200")
        assert found.client.post(url, content=prompt(2 * MIB), headers=headers).status_code == 200
        assert found.metrics(found.ports[0])["sluice_body_bytes"] == 0
        assert found.metrics(found.ports[0])['sluice_refusals_total{limit="bodies"}'] == 1


def test_an_answer_that_is_too_large_ends_for_its_client_with_the_reason(tmp_path: Path):
    with fleet(tmp_path, SLUICE_ANSWER_BYTES_MAX=str(MIB)) as found:
        streamed = found.post(CHAT, body_of(CHAT, "demo-n20000-d0", stream=True))
        whole = found.post(CHAT, body_of(CHAT, "demo-n200000-d0"))

        assert (streamed.status_code, whole.status_code) == (200, 413)
        assert "answer_too_large" in streamed.text[-500:]
        assert "[DONE]" not in streamed.text
        assert whole.json()["error"]["code"] == "answer_too_large"
        until(lambda: found.stats()["open"] == 0, "the upstreams are closed")
