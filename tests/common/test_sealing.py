from pydantic import SecretStr

from common.access import key_text
from common.access.byok_keys import open_byok_key
from common.access.sealing import seal, sign, unseal, verify
from common.ledger import audit

SECRET = SecretStr("a long random text of 32 bytes or more")
OTHER = SecretStr("another long random text of 32 bytes")


def test_what_is_sealed_opens_with_any_of_the_secrets_for_its_purpose_and_generation_alone():
    sealed = seal(b"clear", "gen_1", SECRET, b"a purpose")

    assert unseal(sealed, "gen_1", [OTHER, SECRET], b"a purpose") == b"clear"
    assert unseal(sealed, "gen_1", [OTHER], b"a purpose") is None
    assert unseal(sealed, "gen_2", [SECRET], b"a purpose") is None
    assert unseal(sealed, "gen_1", [SECRET], b"another") is None


def test_a_signature_holds_for_its_text_secret_and_purpose_alone():
    signature = sign(b"text", SECRET, b"a purpose")

    assert verify(b"text", signature, [OTHER, SECRET], b"a purpose")
    assert not verify(b"text", signature, [], b"a purpose")
    assert not verify(b"text", signature, [OTHER], b"a purpose")
    assert not verify(b"text", signature, [SECRET], b"another")
    assert not verify(b"texts", signature, [SECRET], b"a purpose")


def test_what_earlier_versions_sealed_and_signed_still_holds():
    brought = "gAAAAABrDHh5NwRQ2pe7UL_tp_FUDVC2LVuaPVRjJ0_LDayniWF5l3MYaY67AZLLl3nXCFY9IHTaGBKP65rO45L4auhDteG_jQ=="
    audited = (
        b"gAAAAABrDHh5mdpw1uA7J_FEefSQ_nlz5ni1GmFSyBvqUqr07RKmMf_yCq_cjx5UMYrrnnFkuW9ANUXe7E4AUzYf"
        b"OQb8CnY93GgBXT6Ag7PgzoudR6QGanI="
    )
    key = "_".join(("sk_sluice", "0" * 12, "A" * 30 + "78hUoeJz"))

    assert open_byok_key(brought, "gen_1", [SECRET]) == "sk-theirs"
    assert audit.unseal(audited, "gen_1", SECRET) == {"request": "Hello"}
    assert key_text.parse_key(key, SECRET)
