// Starts Swagger UI. Some examples need what an earlier answer had: registration signs the device in, an upload gets real
// KeyPackages of that device, and spending or releasing gets the reservation that was made last. What a person types is
// sent as it is.
window.onload = () => {
  let reservation;

  const isCall = (url, path) => new URL(url, location).pathname.endsWith(path);

  const uploaded = async (request) => {
    const headers = { Authorization: request.headers.Authorization };
    const answer = await fetch("example-upload", { headers });
    return answer.ok ? JSON.stringify(await answer.json(), null, 2) : request.body;
  };

  const requestInterceptor = async (request) => {
    const body = typeof request.body === "string" ? request.body : "";
    if (isCall(request.url, "/keypackages/upload") && body.includes("EXAMPLE_KEY_PACKAGE")) {
      request.body = await uploaded(request);
    }
    if (reservation !== undefined) {
      request.body = body.includes("EXAMPLE_RESERVATION") ? body.replace("EXAMPLE_RESERVATION", reservation) : request.body;
    }
    return request;
  };

  const responseInterceptor = (response) => {
    if (response.status === 201 && isCall(response.url, "/devices")) {
      window.ui.preauthorizeApiKey("bearer", response.body.token);
      window.ui.authActions.persistAuthorizationIfNeeded();
    }
    if (response.status === 200 && isCall(response.url, "/keypackages/reserve")) {
      reservation = response.body.reservations[0].reservation_id;
    }
    return response;
  };

  window.ui = SwaggerUIBundle({
    url: "../openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    persistAuthorization: true,
    tryItOutEnabled: true,
    requestInterceptor,
    responseInterceptor,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    layout: "StandaloneLayout",
  });
};
