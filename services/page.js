// The queue figures, every second and a half while somebody can see them.
(() => {
  const cell = (kind, text) => Object.assign(document.createElement(kind), { textContent: text });
  const row = (kind, texts) => {
    const line = document.createElement("tr");
    line.append(...texts.map((text) => cell(kind, text)));
    return line;
  };
  const show = (table, rewards) => {
    const head = document.createElement("thead");
    const body = document.createElement("tbody");
    head.append(row("th", ["Queue", "waiting", "scored"]));
    for (const { name, waiting, scored, ready } of rewards) {
      const line = row("td", [ready ? name : `${name} (not ready)`, waiting, scored]);
      line.classList.toggle("down", !ready);
      body.append(line);
    }
    table.replaceChildren(head, body);
  };
  const refresh = async () => {
    const table = document.getElementById("queues");
    if (!table || document.hidden) return;
    try {
      const answer = await fetch("page/queues");
      if (!answer.ok) throw new Error(answer.statusText);
      show(table, await answer.json());
      table.classList.remove("stale");
    } catch {
      table.classList.add("stale");
    }
  };
  const loop = async () => {
    await refresh();
    setTimeout(loop, 1500);
  };
  document.addEventListener("visibilitychange", refresh);
  loop();
})();
