// A model without a mind, for the agents: it makes the call of a step, and once more if the answer tells it a better name of
// an argument. `Script` of python/conversation.py is the same.
export class Script {
  #tool;
  #arguments;
  told = [];

  constructor({ tool, arguments: given }) {
    [this.#tool, this.#arguments] = [tool, given];
  }

  first() {
    return { tool: this.#tool, arguments: this.#arguments };
  }

  /** The next call, or nothing when the model is done. */
  hears(text) {
    this.told.push(text);
    const advice = text.match(/`(\w+)` is not an argument of .*did you mean `(\w+)`/);
    if (!advice || this.told.length > 1) return undefined;
    const [, wrong, right] = advice;
    const renamed = Object.entries(this.#arguments).map(([name, value]) => [name === wrong ? right : name, value]);
    this.#arguments = Object.fromEntries(renamed);
    return this.first();
  }

  seen() {
    return { heard: "model", told: this.told, progress: [] };
  }
}
