import pytest

from api.server.client_address import client_address


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::ffff", 5), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.1", 5), "192.0.2.1"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (None, "unknown"),
        (("", 0), "unknown"),
        (("sluice:q:slots", 5), "unknown"),
        (("192.0.2.1\r\nx", 5), "unknown"),
    ],
)
def test_an_address_is_one_customer_s(client, address):
    assert client_address({"client": client}) == address
