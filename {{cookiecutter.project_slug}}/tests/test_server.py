"""Your app on real workers: it serves, heals, reloads and stops without losing a request."""


def test_server_loses_no_request(serve, load, eventually):
    server = serve(workers=2)
    clients = load(server.url, "/healthz")
    eventually(lambda: clients.seen["ok"] > 100)
    server.control.reload()
    assert server.control.snapshot().generation == 2
    eventually(lambda: clients.seen["ok"] > 200)
    seen = clients.stop()
    assert seen["ok"] == seen["sent"]


def test_killed_worker_is_replaced(serve, eventually):
    server = serve(workers=2)
    killed = server.control.snapshot().workers[0].pid
    server.control.kill(killed)
    eventually(lambda: killed not in [worker.pid for worker in server.control.snapshot().workers])
    server.wait_until_ready()
    assert server.client().get("/").status == 200


def test_stop_exits_with_code_0(serve):
    server = serve(workers=2)
    server.control.stop()
    assert server.process.wait(20) == 0
