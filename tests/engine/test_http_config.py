"""The valid and invalid configurations of a custom tool."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Rejected
from engine.tools.http_config import check_configuration, check_effect, fill_secret, secrets_used

GOOD: dict[str, Any] = {
    "url": "https://shop.example:8443/orders/{order}/items/{item_2}?full=1",
    "method": "get",
    "headers": {"Accept-Language": "en"},
    "query": {"a": "b", "n": 1, "yes": True, "x": 1.5},
    "timeout_s": 10,
    "secret_headers": {"Authorization": "Bearer {{shop.key}}", "X-Api-Key": "shop_key", "X-Two": "{{a}}:{{ b }}"},
}
BAD_HEADERS: tuple[object, ...] = (
    {"A b": "c"},
    {"A": "b\r\nC: d"},
    {"A": "é"},
    {"A": 5},
    {"A": ""},
    {"": "a"},
    {"A:": "b"},
    [],
    "x",
    {"Host": "x"},
    {"content-length": "1"},
    {"Idempotency-Key": "x"},
    {"Accept-Encoding": "gzip"},
)
BAD_QUERIES: tuple[object, ...] = ({"a": []}, {"a": {}}, {"a": None}, [], {"": 1}, {str(n): n for n in range(51)})


def test_good_configurations():
    check_configuration(GOOD)
    check_configuration({"url": "http://127.0.0.1:9/x"})
    check_configuration({"url": "https://[2606:4700::1]/"} | dict.fromkeys(("headers", "query", "timeout_s", "secret_headers")))
    for host in ("shop.example.", "a_b.example", "münchen.example", "xn--strae-oqa.example", "a" * 63 + ".example", "10.0.0.1"):
        check_configuration({"url": f"https://{host}/"})
    assert secrets_used(GOOD) == {"shop.key", "shop_key", "a", "b"}
    check_configuration(GOOD, secret_names=["shop.key", "shop_key", "a", "b", "unused"])
    with pytest.raises(Rejected, match=r"'shop\.key', which is not given"):
        check_configuration(GOOD, secret_names=["shop_key", "a", "b"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        *(
            ({"url": url}, "url")
            for url in (
                None,
                "",
                5,
                "shop.example/x",
                "ftp://shop.example/",
                "file:///etc/passwd",
                "https:///x",
                "https://a..b/",
                "https://.shop.example/",
                "https://" + "a" * 64 + ".example/",
                "https://" + "a." * 127 + "example/",
                "https://xn--/",
                "https://xn--zz--/",
                "https://ü..example/",
                "https://u:p@shop.example/",
                "https://u@shop.example/",
                "https://shop.example/#x",
                "https://{host}/x",
                "https://shop.example:{port}/",
                "https://shop.example/x?a={a}",
                "https://shop.example/{a b}",
                "https://shop.example/{a",
                "https://shop.example/a}",
                "https://shop.example/{}",
                "https://shop.example/a b",
                "https://shop.example/\n",
                "https://shop.example\\@evil.example/",
                "https://shop.example:99999/",
                "https://shop.example:0/",
                "https://[::1/",
                "https://shop.example/a/../b",
                "https://shop.example/" + "x" * 2000,
                "javascript:alert(1)",
                "//shop.example/",
            )
        ),
        *(({"method": method}, "method") for method in ("TRACE", "CONNECT", "", 5, ["GET"], "GET / HTTP/1.1\r\nX: y")),
        *(({"headers": headers}, "headers") for headers in BAD_HEADERS),
        *(
            ({"secret_headers": headers}, "secret_headers")
            for headers in ({"A": "Bearer {{a"}, {"A": "a}}"}, {"A": "{{}}"}, {"A": "{{a}}{{"}, {"Host": "a"}, {"A": None})
        ),
        *(({"query": query}, "query") for query in BAD_QUERIES),
        *(({"timeout_s": timeout}, "timeout_s") for timeout in (0, -1, 301, "10", True)),
        ({"timeout_s": float("nan")}, "finite"),
        ({"uri": "x"}, "unknown field 'uri'"),
        ({"query": {"a": "\x00"}}, "U+0000"),
    ],
)
def test_bad_configurations(change: dict[str, Any], why: str):
    with pytest.raises(Rejected) as caught:
        check_configuration(GOOD | change)
    assert why in str(caught.value)
    assert str(caught.value).endswith(".")


STATUS: dict[str, Any] = {
    "url": "https://shop.example/refunds/{idempotency_key}/of/{order}?full=1",
    "method": "post",
    "headers": {"Accept-Language": "en"},
    "query": {"key": "{idempotency_key}", "n": 1},
    "secret_headers": {"Authorization": "Bearer {{status_key}}"},
    "done": "state == 'paid'",
    "result": {"amount": "refund.amount"},
}


def test_good_statuses():
    check_configuration(GOOD | {"status": STATUS})
    check_configuration(GOOD | {"status": {"url": "https://shop.example/status"}})
    check_configuration(GOOD | {"status": None})
    check_configuration(GOOD | {"status": {"url": "http://x/"} | dict.fromkeys(("headers", "query", "secret_headers", "done", "result"))})
    assert "status_key" in secrets_used(GOOD | {"status": STATUS})
    with pytest.raises(Rejected, match="'status_key', which is not given"):
        check_configuration(GOOD | {"status": STATUS}, secret_names=["shop.key", "shop_key", "a", "b"])


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("https://shop.example", "status must be an object"),
        ([], "status must be an object"),
        ({}, "status.url is required"),
        (STATUS | {"url": "ftp://x/"}, "status.url must begin"),
        (STATUS | {"url": "https://x/?key={idempotency_key}"}, "status.query"),
        (STATUS | {"url": "https://{order}/"}, "status.url may have"),
        (STATUS | {"url": "https://u:p@x/"}, "status.url must not contain"),
        (STATUS | {"method": "DELETE"}, "status.method must be one of GET, POST"),
        (STATUS | {"method": None}, "status.method"),
        (STATUS | {"headers": {"Idempotency-Key": "x"}}, "status.headers must not set"),
        (STATUS | {"secret_headers": {"A": "{{a"}}, "status.secret_headers has a template"),
        (STATUS | {"query": {"a": []}}, "status.query must give"),
        (STATUS | {"query": {"a": "{key"}}, "status.query has, for 'a'"),
        (STATUS | {"done": "state =="}, "status.done is not a valid JMESPath"),
        (STATUS | {"done": {"a": "b"}}, "status.done must be a JMESPath"),
        (STATUS | {"done": 5}, "status.done must be a JMESPath"),
        (STATUS | {"result": "nope("}, "status.result is not a valid JMESPath"),
        (STATUS | {"result": 5}, "status.result must be"),
        (STATUS | {"timeout_s": 5}, "status has an unknown field 'timeout_s'"),
    ],
)
def test_bad_statuses(status: Any, why: str):
    with pytest.raises(Rejected) as caught:
        check_configuration(GOOD | {"status": status})
    assert why in str(caught.value)
    assert str(caught.value).endswith(".")


def test_queryable_effect_requires_a_status_request():
    for effect in ("pure", "idempotent", "unsafe"):
        check_effect(effect, GOOD)
    check_effect("queryable", GOOD | {"status": STATUS})
    for configuration in (GOOD, GOOD | {"status": None}):
        with pytest.raises(Rejected, match="needs `status`"):
            check_effect("queryable", configuration)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from([*GOOD, *STATUS, "status"]),
        lambda one: (
            st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from([*GOOD, *STATUS, "status"]), one, max_size=3)
        ),
    )
)
def test_any_configuration_is_accepted_or_rejected_without_other_errors(configuration: Any):
    with contextlib.suppress(Rejected):
        check_configuration(configuration)


def test_secrets_fill_templates():
    secrets = {"shop.key": "abc", "newline": "abc\n", "broken": "a\r\nX: y"}
    assert fill_secret("shop.key", secrets) == "abc"
    assert fill_secret("Bearer {{shop.key}}", secrets) == "Bearer abc"
    assert fill_secret("{{ shop.key }}:{{newline}}", secrets) == "abc:abc"
    for template, name in (("gone", "gone"), ("{{gone}}", "gone"), ("broken", "broken")):
        with pytest.raises(Rejected, match=name) as caught:
            fill_secret(template, secrets)
        assert "X: y" not in str(caught.value)
