"""Custom code: an allow-list over what NGINX's grammar makes of the text; the text itself never reaches NGINX."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyttle_ops.nginx.custom_code import ALLOWED, MAXIMUM, check_custom_code, describe_allowed, parse_custom_code
from lyttle_ops.nginx.errors import CustomCodeError
from lyttle_ops.nginx.syntax import Directive

PIECES = st.sampled_from(
    [*'{};"\'\\#$ \n\t()', "location", "if", "return", "set", "include", "root", "add_header", "X-A", "/", "/a", "200",
     "(", "~", "$uri", "proxy_pass", "http://a:1", "lua", "\\", "\u00a0", "\u2028", "a"]
)  # fmt: skip


def test_directives_of_a_reverse_proxy_are_accepted_and_comments_dropped() -> None:
    code = """
    # slow reports
    proxy_read_timeout 300s; add_header X-Frame-Options "DENY" always;
    location ~* ^/(css|js)/ { expires 30d; }
    if ($http_user_agent ~ (bot|"crawl er")) { return 403; }
    location /admin { allow 10.0.0.0/8; deny all; limit_except GET { deny all; } }
    """
    assert check_custom_code(code) == (
        "proxy_read_timeout 300s;\n"
        "add_header X-Frame-Options DENY always;\n"
        'location ~* "^/(css|js)/" {\n    expires 30d;\n}\n'
        'if "($http_user_agent" ~ "(bot|\\"crawl" "er\\"))" {\n    return 403;\n}\n'
        "location /admin {\n    allow 10.0.0.0/8;\n    deny all;\n    limit_except GET {\n        deny all;\n    }\n}\n"
    )


@pytest.mark.parametrize("empty", ["", "  \n\t", "# only a comment", "# a\n\n# b\n"])
def test_nothing_is_nothing(empty: str) -> None:
    assert check_custom_code(empty) == ""


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        ("include /etc/passwd;", 1, '"include" is not allowed.*reaches files'),
        ("expires 1d;\n\nlocation /x {\n  root /;\n}", 4, '"root" is not allowed.*reaches files'),
        ("location /x { alias /etc/; }", 1, '"alias"'),
        ("try_files $uri /index.html;", 1, '"try_files"'),
        ("ssl_certificate a;", 1, '"ssl_certificate"'),
        ("ssl_protocols SSLv3;", 1, '"ssl_protocols".*for all sites'),
        ("auth_basic_user_file /etc/shadow;", 1, '"auth_basic_user_file"'),
        ("content_by_lua_block { os.execute() }", 1, '"content_by_lua_block"'),
        ("perl_set $x 'sub {}';", 1, '"perl_set"'),
        ("load_module x.so;", 1, '"load_module"'),
        ("error_log /tmp/x;", 1, '"error_log"'),
        ("access_log off;", 1, '"access_log"'),
        ("proxy_store on;", 1, '"proxy_store"'),
        ("dav_methods PUT;", 1, '"dav_methods"'),
        ("listen 8080;", 1, '"listen".*for all sites'),
        ("location / { fastcgi_pass unix:/x; }", 1, '"fastcgi_pass"'),
        ("proxy_pass http://a;", 1, '"proxy_pass" is not allowed directly in server, only in location'),
        ("proxy_read_timeuot 1;", 1, "did you mean proxy_read_timeout"),
        ("nonsense 1;", 1, '"nonsense" is not allowed in custom code .*/openapi lists'),
        ("} server { listen 1; } server {", 1, 'unexpected "}"'),
        ("location / { }\n}", 2, 'unexpected "}"'),
        ("location / {", 1, 'expecting "}"'),
        ("return 200", 1, 'a ";", a quote'),
        ('add_header X "a;\nexpires 1d;', 1, "a quote"),
        ("location / { expires 1d }", 1, '"expires" is not ended by ";"'),
        (";", 1, 'unexpected ";"'),
        ("{ expires 1d; }", 1, 'unexpected "{"'),
        ("expires { }", 1, '"expires" takes no'),
        ("location /;", 1, '"location" needs a'),
        ("if $uri { return 404; }", 1, "parentheses"),
        ("if () { return 404; }", 1, "condition"),
        ("if (-f /etc/passwd) { return 404; }", 1, "must not test files"),
        ("if (!-e $uri) { return 404; }", 1, "must not test files"),
        ("location = { }", 1, 'begins with "/"'),
        ("location a b c { }", 1, "a modifier and a path"),
        ("location !! /a { }", 1, "not a modifier"),
        ("add_header X \u00a0;", 1, "not allowed in custom code"),
        ("add_header X \x00;", 1, "not allowed in custom code"),
        ("add_header X \u202e;", 1, "not allowed in custom code"),
        ("a" * (MAXIMUM + 1), 1, "limited to"),
        ("location / {" * 20 + "}" * 20, 1, "nested too deeply"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_its_line_and_the_reason(code: str, line: int, words: str) -> None:
    with pytest.raises(CustomCodeError, match=words) as refused:
        check_custom_code(code)
    assert refused.value.line == line


def test_a_refusal_is_short_and_the_whole_list_stands_in_one_place() -> None:
    with pytest.raises(CustomCodeError) as refused:
        check_custom_code("nonsense 1;")
    assert len(str(refused.value)) < 120
    described = describe_allowed()
    assert all(name in described for names in ALLOWED.values() for name in names)


@pytest.mark.parametrize(
    "code",
    [
        "location /.well-known/acme-challenge/ { return 404; }",
        "location ^~ /.well-known/acme-challenge { return 404; }",
        "location = /.well-known/acme-challenge/token { return 404; }",
        "location ^~/.well-known/acme-challenge/x { return 404; }",
        "location =/.well-known/acme-challenge/x { return 404; }",
        'location / { location "/.well-known/acme-challenge/" { return 404; } }',
        "location /.well\\-known { } location '/.well-known/acme-chal''lenge/' { }",
    ],
)
def test_acme_challenges_cannot_be_claimed(code: str) -> None:
    with pytest.raises(CustomCodeError):
        check_custom_code(code)


@pytest.mark.parametrize(
    "code",
    [
        "set $lyttle_nothing x;",
        "set $LYTTLE_nothing x;",
        "rewrite ^(?<lyttle_nothing>.*)$ /x;",
        "if ($uri ~ (?<lyttle_upgrade>.*)) { break; }",
        'add_header X "${lyttle_release}";',
        "location / { proxy_pass http://lyttle_site_1; }",
    ],
)
def test_names_of_lyttleops_are_out_of_reach(code: str) -> None:
    with pytest.raises(CustomCodeError, match="reserved"):
        check_custom_code(code)


@pytest.mark.parametrize(
    "url",
    [
        "http://unix:/run/api.sock", "http://unix:/run/api.sock:/", "HTTP://unix:/a", "https://unix:/a", "unix:/a",
        "http://$host", "http://a:${port}", "ftp://a", "http://", "http://a:0", "http://a:99999", "http://a b",
        "http://user:password@a", "http://a/?b", "//a", "a",
    ],
)  # fmt: skip
def test_proxy_pass_takes_urls_of_hosts_only(url: str) -> None:
    with pytest.raises(CustomCodeError):
        check_custom_code(f'location /x {{ proxy_pass "{url}"; }}')


@pytest.mark.parametrize("location", ["~ ^/x", "~* x$", "@named"])
def test_a_path_cannot_replace_the_prefix_of_a_location_that_has_none(location: str) -> None:
    check_custom_code(f"location {location} {{ proxy_pass http://a:1; }}")
    with pytest.raises(CustomCodeError, match="path"):
        check_custom_code(f"location {location} {{ proxy_pass http://a:1/y; }}")


def names(directives: tuple[Directive, ...]) -> set[str]:
    return {name for one in directives for name in {one.name} | names(one.block or ())}


@given(st.lists(PIECES, max_size=30).map("".join) | st.lists(PIECES, max_size=30).map(" ".join) | st.text())
def test_whatever_is_accepted_means_the_same_when_it_is_read_again(text: str) -> None:
    try:
        once = check_custom_code(text)
    except CustomCodeError:
        return
    assert check_custom_code(once) == once
    assert names(parse_custom_code(once)) == names(parse_custom_code(text)) <= frozenset().union(*ALLOWED.values())
