"""The login over two real workers."""

import pytest

NAME, PASSWORD = "Ada", "correct horse battery"
EACH = {"fresh_connection": True}  # each request may reach another worker


@pytest.fixture
def server(serve):
    return serve(workers=2, app="examples.login:create_app")


@pytest.fixture
def ada(server):
    """A visitor who has signed up."""
    visitor = server.client()
    assert visitor.post("/sign-up", {"name": NAME, "password": PASSWORD}).status == 303
    assert "You have signed up." in visitor.get("/").text
    return visitor


def log_in(visitor, password=PASSWORD, **fields):
    return visitor.post("/log-in", {"name": NAME, "password": password, **fields}, **EACH)


def test_every_worker_knows_who_is_logged_in(ada):
    assert log_in(ada).status == 303
    assert "Welcome." in ada.get("/", **EACH).text
    answers = [ada.get("/", **EACH) for _ in range(20)]
    assert {answer.worker for answer in answers} == {0, 1}
    assert all("logged in as <b>ada</b>" in answer.text for answer in answers)
    assert not any("Welcome." in answer.text for answer in answers)


def test_login_moves_the_session_to_a_new_id(ada):
    assert log_in(ada).headers["set-cookie"]
    assert log_in(ada).headers["set-cookie"]  # also if the user is logged in already
    assert "set-cookie" not in ada.get("/").headers


@pytest.mark.parametrize(("name", "password"), [(NAME, "wrong password"), ("nobody", PASSWORD), ("", "")])
def test_wrong_name_or_password_is_refused(ada, name, password):
    ada.post("/log-in", {"name": name, "password": password})
    answer = ada.get("/").text
    assert "The name or the password is wrong." in answer
    assert "logged in as" not in answer


def test_name_that_is_taken_keeps_its_password(ada):
    ada.post("/sign-up", {"name": NAME, "password": "another password"})
    assert "This name is taken." in ada.get("/").text
    log_in(ada, "another password")
    assert "is wrong" in ada.get("/").text


def test_guesses_for_one_name_are_limited(ada, server):
    statuses = [log_in(server.client(), "a wrong password").status for _ in range(6)]
    assert statuses == [303] * 5 + [429]
    assert log_in(ada).status == 429


def sessions(redis):
    """The keys of the sessions that have not moved to another id."""
    return list(redis.scan_iter("examples:session:[0-9a-f]*", _type="hash"))


def test_remember_me_ends_later(ada, server, redis):
    log_in(ada)
    log_in(server.client(), remember="on")
    ends = sorted(float(end) for key in sessions(redis) if (end := redis.hget(key, ":until")))
    assert 29 * 86400 < ends[1] - ends[0] < 30 * 86400


def test_login_ends_at_its_time(ada, redis):
    log_in(ada)
    for key in sessions(redis):
        if redis.hexists(key, ":until"):
            redis.hset(key, ":until", 1)
    assert "logged in as" not in ada.get("/").text


@pytest.mark.parametrize(("fields", "left"), [({}, True), ({"everywhere": "yes"}, False)])
def test_log_out_here_or_everywhere(ada, server, fields, left):
    other = server.client()
    log_in(ada)
    log_in(other)
    assert "on 2 of your devices" in other.get("/").text
    ada.post("/log-out", fields)
    assert "You are logged out." in ada.get("/").text
    assert ("logged in as" in other.get("/").text) == left


def test_form_of_another_site_is_refused(ada):
    log_in(ada)
    assert ada.post("/log-out", headers={"Origin": "https://evil.example"}).status == 403
    assert "logged in as" in ada.get("/").text
