"""Which proxy a request goes through."""

from __future__ import annotations

from http_client.proxies import Proxies


def test_of_the_environment() -> None:
    proxies = Proxies.of(
        {
            "HTTP_PROXY": "plain:1",
            "https_proxy": "http://tls:2",
            "NO_PROXY": "a.example,10.0.0.0/8,b.example:81,.c",
        }
    )
    assert proxies.proxy_for("http://reg.example") == "http://plain:1"
    assert proxies.proxy_for("https://reg.example/v2/") == "http://tls:2"
    for place in ("a.example", "x.a.example", "A.example.", "10.1.2.3", "b.example:81", "d.c"):
        assert proxies.proxy_for(f"http://{place}/x") == ""
    for place in ("aa.example", "11.1.2.3", "b.example", "c"):
        assert proxies.proxy_for(f"http://{place}") == "http://plain:1"
    for place in ("localhost", "localhost:1", "127.0.0.1", "[::1]:5000"):
        assert proxies.proxy_for(f"http://{place}") == ""


def test_what_is_given_comes_first() -> None:
    proxies = Proxies.of(
        {"HTTPS_PROXY": "no:1", "NO_PROXY": "a.example"}, {"https-proxy": "p:1", "no-proxy": ""}
    )
    assert proxies.proxy_for("https://x.example") == "http://p:1"
    assert proxies.proxy_for("https://a.example") == ""
    assert proxies.proxy_for("http://x.example") == ""
    assert Proxies.of({"HTTP_PROXY": "p"}, {"no-proxy": "*"}).proxy_for("http://x") == ""
