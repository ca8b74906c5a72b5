// Starts Swagger UI. See docs.rs for why it isn't the start that comes with it.

const KEY = "Idempotency-Key";

// A random UUID. `crypto.randomUUID` is missing where the page comes over plain HTTP from another host.
function freshKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

// Gives each try of an operation a key of its own, and adds a button that sends it again with the same key.
function IdempotencyKeys(system) {
  const { React } = system;
  // The keys that the operations were last sent with, by method and path.
  const sent = new Map();
  let isRepetition = false;

  const nameOf = ({ method, path }) => `${method} ${path}`;

  // The parameter of an operation that takes a key, as the document has it.
  const parameterOf = ({ method, path }) =>
    system.specSelectors
      .specJsonWithResolvedSubtrees()
      .getIn(["paths", path, method, "parameters"])
      ?.find((parameter) => parameter.get("name") === KEY && parameter.get("in") === "header");

  const fill = (operation, key) =>
    system.specActions.changeParamByIdentity(
      [operation.path, operation.method],
      parameterOf(operation),
      key,
      false,
    );

  // The key that the form holds.
  const shownKey = (operation) =>
    system.specSelectors
      .parameterWithMetaByIdentity([operation.path, operation.method], parameterOf(operation))
      .get("value");

  class Execute extends React.Component {
    componentDidMount() {
      if (parameterOf(this.props)) {
        fill(this.props, freshKey());
      }
    }

    componentWillUnmount() {
      sent.delete(nameOf(this.props));
    }

    repeat() {
      fill(this.props, sent.get(nameOf(this.props)));
      isRepetition = true;
      try {
        this.button.click();
      } finally {
        isRepetition = false;
      }
    }

    render() {
      const { createElement } = React;
      const original = createElement(this.props.original, this.props);
      const { method, path } = this.props;
      if (!sent.has(nameOf(this.props)) || !system.specSelectors.responseFor(path, method)) {
        return original;
      }
      return createElement(
        React.Fragment,
        null,
        original,
        createElement(
          "button",
          {
            className: "btn btn-clear",
            disabled: this.props.disabled,
            onClick: (event) => {
              this.button = event.currentTarget.parentNode.querySelector(".execute");
              this.repeat();
            },
            title: "Sends the form with the key of the last try. The service answers as it did then, or refuses a form that has changed.",
          },
          "Send again, same key",
        ),
      );
    }
  }

  // Says what an answer is, to people who don't read headers.
  const noteOn = (answer) => {
    if (answer.getIn(["headers", "idempotent-replayed"]) === "true") {
      return "A replay: the stored answer to the first request with this key. Nothing was executed.";
    }
    const isExecuted = answer.hasIn(["headers", "idempotency-key"]) && answer.get("status") < 300;
    return isExecuted ? "Executed. With the same key, the service gives this answer again." : "";
  };

  const NOTE = { borderLeft: "4px solid #49cc90", fontWeight: 600, margin: "1rem 0", padding: "0.5rem 1rem" };

  const Note = ({ answer }) =>
    noteOn(answer) && React.createElement("p", { className: "idempotency-note", role: "status", style: NOTE }, noteOn(answer));

  return {
    wrapComponents: {
      liveResponse: (original) => (props) =>
        React.createElement(
          React.Fragment,
          null,
          props.response && React.createElement(Note, { answer: props.response }),
          React.createElement(original, props),
        ),
      execute: (original) => (props) => React.createElement(Execute, { ...props, original }),
    },
    statePlugins: {
      spec: {
        wrapActions: {
          execute: (original) => (request) => {
            if (parameterOf(request)) {
              const key = shownKey(request);
              // A key that a person has entered is used. One that was sent before is used only to repeat.
              if (!isRepetition && key === sent.get(nameOf(request))) {
                fill(request, freshKey());
              }
              sent.set(nameOf(request), shownKey(request));
            }
            return original(request);
          },
        },
      },
    },
  };
}

// Fills in the keys of a development environment. Elsewhere there are none.
async function authorize(ui) {
  const keys = await (await fetch("/docs/authorization.json")).json();
  for (const [scheme, key] of Object.entries(keys)) {
    ui.preauthorizeApiKey(scheme, key);
  }
}

window.onload = () => {
  window.ui = SwaggerUIBundle({
    url: "/openapi.json",
    // Otherwise it would show the document's address to somebody else's server.
    validatorUrl: null,
    dom_id: "#swagger-ui",
    deepLinking: true,
    layout: "StandaloneLayout",
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    onComplete: () => authorize(window.ui),
    plugins: [SwaggerUIBundle.plugins.DownloadUrl, IdempotencyKeys],
  });
};
