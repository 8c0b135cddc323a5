// The page loads everything from the broker, so it works without internet access.
window.ui = SwaggerUIBundle({
  spec: JSON.parse(document.getElementById("description").textContent),
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
