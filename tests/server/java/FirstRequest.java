import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

/** Submits two tasks, each by the first request of a client, which offers HTTP/2; prints the status of each. */
public class FirstRequest {
    public static void main(String[] arguments) throws Exception {
        var address = URI.create(arguments[0] + "/v1/tasks");
        var large = "{\"needs\": 1, \"payload\": \"" + "x".repeat(1_000_000) + "\"}";
        // The second has no length, so it is sent in chunks.
        var bodies = new HttpRequest.BodyPublisher[] {
            BodyPublishers.ofString("{\"needs\": 1}"),
            BodyPublishers.fromPublisher(BodyPublishers.ofString(large)),
        };
        for (var body : bodies) {
            var request = HttpRequest.newBuilder(address).header("Content-Type", "application/json").POST(body).build();
            var response = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
            System.out.println(response.statusCode());
        }
    }
}
