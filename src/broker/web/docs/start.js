// Everything comes from the broker itself: the page works with no internet.
window.ui = SwaggerUIBundle({
  spec: JSON.parse(document.getElementById("description").textContent),
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
