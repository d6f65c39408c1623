"""The app on real workers: they serve, are replaced, reload and stop, and no request is lost.

`/healthz` is the engine's, so these tests hold whatever pages the app has.
"""


def test_reload_and_stop_lose_no_request(serve, load, eventually):
    server = serve(workers=2)
    clients = load(server.url, "/healthz", keep_alive=True)
    eventually(lambda: clients.seen["ok"] > 50)
    server.control.reload()
    assert server.control.snapshot().generation == 2
    answered = clients.seen["ok"]
    eventually(lambda: clients.seen["ok"] > answered + 50)
    server.control.stop()
    assert server.process.wait(20) == 0
    eventually(lambda: clients.seen["refused"])  # nobody listens any more
    seen = clients.stop()
    assert set(seen) == {"sent", "ok", "refused"}, seen  # no other outcome


def test_killed_worker_is_replaced(serve, eventually):
    server = serve(workers=2)
    killed = server.control.snapshot().workers[0].pid
    server.control.kill(killed)
    eventually(lambda: killed not in [worker.pid for worker in server.control.snapshot().workers])
    server.wait_until_ready()
    assert server.client().get("/healthz").status == 200
