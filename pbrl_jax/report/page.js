(function () {
  var list = document.getElementById("samples");
  if (!list) return;
  var cards = Array.prototype.slice.call(list.children);
  function at(id) { return document.getElementById(id); }
  var language = at("by-language"), step = at("by-step"), run = at("by-run"), order = at("by-order");
  var low = at("reward-from"), high = at("reward-to"), count = at("sample-count");
  function number(card) { return card.dataset.reward === "" ? -Infinity : Number(card.dataset.reward); }
  function fits(card) {
    var value = card.dataset, reward = number(card);
    if (value.reward === "" && (low.value !== "" || high.value !== "")) return false;
    return (!language.value || value.language === language.value) && (!step.value || value.step === step.value) &&
           (!run || !run.value || value.run === run.value) &&
           (low.value === "" || reward >= Number(low.value)) && (high.value === "" || reward <= Number(high.value));
  }
  function update() {
    var shown = 0, sign = { low: 1, high: -1 }[order.value] || 0;
    cards.forEach(function (card) {
      card.hidden = !fits(card);
      shown += card.hidden ? 0 : 1;
    });
    var sorted = cards.slice();
    if (sign) sorted.sort(function (a, b) { return sign * (number(a) - number(b)) || 0; });
    sorted.forEach(function (card) { list.appendChild(card); });
    count.textContent = shown + " of " + cards.length + " shown";
  }
  [language, step, run, order, low, high].forEach(function (control) {
    if (control) control.addEventListener("input", update);
  });
  at("filters").hidden = false;
  step.value = step.options[step.options.length - 1].value;
  if (step.options.length === 2 && language.options.length > 2) language.value = language.options[1].value;
  update();
})();
