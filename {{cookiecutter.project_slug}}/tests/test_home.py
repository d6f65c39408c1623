"""Tests of the home page. `client` runs the app in this process, with a Redis that is empty before each test."""


def test_home_counts_visits(client):
    assert "Visit 1." in client.get("/").text
    assert "Visit 2." in client.get("/").text


def test_home_remembers_the_name(client):
    client.post("/", data={"name": "Ada"})
    assert "Hello, Ada" in client.get("/").text


def test_home_shows_a_name_as_text(client):
    client.post("/", data={"name": "<b>Ada</b>"})
    assert "<b>" not in client.get("/").text


def test_unknown_page_is_a_page_with_status_404(client):
    answer = client.get("/no/such/page", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert "<h1>Not Found</h1>" in answer.text


def test_form_of_another_site_is_refused(client):
    assert client.post("/", data={"name": "Eve"}, headers={"Origin": "https://evil.example"}).status_code == 403


def test_workers_share_one_session(serve):
    visitor = serve(workers=2).client()
    visitor.post("/", {"name": "Ada"})
    answers = [visitor.get("/", fresh_connection=True) for _ in range(20)]
    assert {answer.worker for answer in answers} == {0, 1}
    assert all("Hello, Ada" in answer.text for answer in answers)
