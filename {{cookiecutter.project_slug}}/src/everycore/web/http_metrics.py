"""The requests of all workers by route, in the format of Prometheus."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from everycore.server import HttpTotals

STATUSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")


class HttpCollector(Collector):
    """Converts the requests of all workers into the metrics of Prometheus."""

    def __init__(self, totals: HttpTotals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of requests. No value of them decreases while the server runs."""
        totals = self._totals
        text = "Requests by route and class of status; none: the client left before the response."
        requests = CounterMetricFamily("cluster_http_requests", text, labels=["route", "method", "status"])
        text = "Time from the head of a request to the end of its response, or to the start of an event stream."
        durations = HistogramMetricFamily("cluster_http_request_duration_seconds", text, labels=["route", "method"])
        for each in totals.routes:
            for status, count in zip(STATUSES, each.statuses, strict=True):
                if count or status == "5xx":  # a rate needs the 0 before the first error
                    requests.add_metric([each.route, each.method, status], count)
            durations.add_metric([each.route, each.method], each.duration.cumulative(), each.duration.seconds)
        yield requests
        yield durations
        text = "Time in a queue: proxy, since its X-Request-Start; listen, until a worker accepted the connection."
        queues = HistogramMetricFamily("cluster_http_queue_seconds", text, labels=["queue"])
        for name, queue in (("proxy", totals.proxy_queue), ("listen", totals.listen_queue)):
            queues.add_metric([name], queue.cumulative(), queue.seconds)
        yield queues
        text = "Requests and event streams that were refused because of MAX_IN_FLIGHT and MAX_STREAMS."
        shed = CounterMetricFamily("cluster_http_shed", text, labels=["limit"])
        shed.add_metric(["requests"], totals.shed_requests)
        shed.add_metric(["streams"], totals.shed_streams)
        yield shed
