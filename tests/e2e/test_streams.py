import httpx

from tests.support.fleet import KEY, Fleet


def test_an_answer_streams_from_the_provider_to_the_client(shared: Fleet):
    body = {"model": "demo-n20-d1", "stream": True, "messages": [{"role": "user", "content": "hi"}]}

    response = httpx.post(f"{shared.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})

    assert response.status_code == 200
    assert response.text.endswith("data: [DONE]\n\n")
