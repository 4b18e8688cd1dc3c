"use strict";

SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "openapi.json",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  filter: true,
  supportedSubmitMethods: ["get"], // only requests that change nothing can be tried here
  persistAuthorization: false, // an API key is forgotten with the page
  validatorUrl: null, // the default sends the document's URL to another host
});
