// The demo page: puts the live picture, the firing and the controls together.

import "./asking.js";
import { show, showAlone } from "./cards.js";
import { element, say } from "./dom.js";
import { fire } from "./fire.js";
import { allow, watch } from "./harm.js";
import { follow } from "./live.js";

const LINK = { live: "Live", lost: "Lost; asking again" };

let worker;

follow({
  hello(told) {
    worker = told.worker;
    allow(told.token);
    say(element("teller"), `Worker ${worker.slot} (pid ${worker.pid}) tells this page just now.`);
  },
  picture(seen) {
    if (Object.keys(seen.hosts).length) show(seen);
    else showAlone(worker);
    watch(seen);
  },
  link(state) {
    element("link").dataset.is = state;
    say(element("link"), LINK[state]);
  },
});

element("fire").addEventListener("click", fire);
