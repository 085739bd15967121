// The part of OAuth that the TypeScript SDK leaves to its host, kept in memory. The user consents to everything: the
// browser is one request whose redirect is read instead of followed.

export class Provider {
  #client;
  #tokens;
  #verifier;
  #redirect;

  redirectUrl = "http://localhost/callback";
  clientMetadata = {
    client_name: "guardian-test",
    redirect_uris: [this.redirectUrl],
    grant_types: ["authorization_code", "refresh_token"],
    response_types: ["code"],
    token_endpoint_auth_method: "none",
  };

  clientInformation = () => this.#client;
  saveClientInformation = (client) => void (this.#client = client);
  tokens = () => this.#tokens;
  saveTokens = (tokens) => void (this.#tokens = tokens);
  codeVerifier = () => this.#verifier;
  saveCodeVerifier = (verifier) => void (this.#verifier = verifier);
  state = () => "a-state";

  async redirectToAuthorization(url) {
    const answer = await fetch(url, { redirect: "manual" });
    const location = answer.headers.get("location");
    if (!location) throw new Error(`the authorization server says ${answer.status}: ${await answer.text()}`);
    this.#redirect = new URL(location).searchParams;
  }

  /** The parameters of the redirect: code, state, iss. */
  redirected() {
    return this.#redirect;
  }

  /** The scopes of the current token. */
  scope() {
    return this.#tokens?.scope;
  }
}
