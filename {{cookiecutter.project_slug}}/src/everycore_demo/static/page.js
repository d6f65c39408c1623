// The demo page: connects the live status, the requests and the controls.

import "./asking.js";
import { show, showAlone } from "./cards.js";
import { element, setText } from "./dom.js";
import { fire } from "./fire.js";
import { allow, watch } from "./harm.js";
import { follow } from "./live.js";

const CONNECTION = { live: "Live", lost: "Connection lost, reconnecting" };

let worker;

follow({
  hello(event) {
    worker = event.worker;
    allow(event.token);
    setText(element("source"), `Worker ${worker.slot} (pid ${worker.pid}) sends the status to this page now.`);
  },
  status(status) {
    if (Object.keys(status.hosts).length) show(status);
    else showAlone(worker);
    watch(status);
  },
  connection(state) {
    element("connection").dataset.is = state;
    setText(element("connection"), CONNECTION[state]);
  },
});

element("fire").addEventListener("click", fire);
