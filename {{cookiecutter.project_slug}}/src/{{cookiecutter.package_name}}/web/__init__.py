"""Routes. This package knows `state` and never `cluster`: what it may know of that is `request.state.cluster`."""
