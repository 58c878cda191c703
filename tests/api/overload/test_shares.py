"""Is a request known to be its tenant's before it is authenticated, and by what it may keep?"""

from api.overload.shares import KNOWN_MAX, NOBODY, CredentialCache, CredentialOwner, credential_of


def test_a_credential_is_told_from_others_wherever_it_stands_and_kept_as_a_digest():
    one = credential_of([(b"host", b"x"), (b"authorization", b"Bearer sk-one")])

    assert one == credential_of([(b"authorization", b"Bearer sk-one"), (b"accept", b"*/*")])
    assert one != credential_of([(b"authorization", b"Bearer sk-two")])
    assert one != credential_of([(b"authorization", b"Bearer sk-one"), (b"x-api-key", b"sk-two")])
    assert b"sk-one" not in one
    assert credential_of([(b"host", b"x")]) == b""


def test_beside_a_key_of_the_gateways_own_the_providers_says_nothing():
    own = (b"x-sluice-key", b"sk-own")

    assert credential_of([own]) == credential_of([own, (b"authorization", b"Bearer sk-provider")])


def test_what_is_known_is_bounded_and_may_change():
    credentials = CredentialCache()
    for number in range(KNOWN_MAX + 1):
        credentials.add(b"%d" % number, CredentialOwner("acme"))
    credentials.add(b"1", CredentialOwner("other"))

    assert credentials.find(b"0") == NOBODY
    assert credentials.find(b"1") == CredentialOwner("other")
    assert credentials.find(b"%d" % KNOWN_MAX) == CredentialOwner("acme")
