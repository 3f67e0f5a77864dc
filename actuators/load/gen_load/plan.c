#include "plan.h"

#include <ctype.h>

static void read_body_file(struct stream *stream, const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_user("body file '%s' of type %s: %s", path, stream->type, strerror(errno));
    struct text body = {0};
    size_t got;
    do {
        text_reserve(&body, 65536);
        got = fread(body.data + body.length, 1, 65536, file);
        body.length += got;
    } while (got > 0);
    if (ferror(file)) fail_user("body file '%s' of type %s: %s", path, stream->type, strerror(errno));
    fclose(file);
    stream->body_bytes = body.data;
    stream->body_length = body.length;
}

static void set_body(struct stream *stream, const char *name) {
    stream->body_name = copy_text(name);
    if (strcmp(name, "none") == 0) stream->body = BODY_NONE;
    else if (strcmp(name, "compose") == 0) stream->body = BODY_COMPOSE;
    else if (strcmp(name, "timeline") == 0) stream->body = BODY_TIMELINE;
    else if (strcmp(name, "spans") == 0) stream->body = BODY_SPANS;
    else if (strncmp(name, "file:", 5) == 0) {
        stream->body = BODY_FILE;
        read_body_file(stream, name + 5);
    } else
        fail_user("unknown body '%s' of type %s; expected compose, timeline, spans, none or file:PATH", name, stream->type);
}

/* Type names are written to a header and to JSON without escaping. */
static bool is_plain_name(const char *name) {
    for (const char *c = name; *c != '\0'; c++)
        if (!isalnum((unsigned char)*c) && strchr("_.-", *c) == NULL) return false;
    return *name != '\0';
}

static struct stream *plan_add_stream(struct plan *plan, const char *type, const char *method, const char *path,
                                      const char *body) {
    if (!is_plain_name(type)) fail_user("invalid request type '%s'; use letters, digits, '_', '-' and '.'", type);
    if (path[0] != '/') fail_user("path '%s' of type %s must begin with '/'", path, type);
    for (size_t i = 0; i < plan->stream_count; i++)
        if (strcmp(plan->streams[i].type, type) == 0) fail_user("type %s is listed twice", type);
    plan->streams = resize(plan->streams, plan->stream_count + 1, sizeof *plan->streams);
    struct stream *stream = &plan->streams[plan->stream_count++];
    *stream = (struct stream){.type = copy_text(type), .method = copy_text(method), .path = copy_text(path)};
    set_body(stream, body);
    return stream;
}

static void stream_add_step(struct stream *stream, double start_s, double rate_rps, enum distribution distribution,
                            double cv) {
    if (stream->step_count >= MAX_STEPS) fail_user("type %s has more than %d steps", stream->type, MAX_STEPS);
    stream->steps = resize(stream->steps, stream->step_count + 1, sizeof *stream->steps);
    struct step *step = &stream->steps[stream->step_count++];
    *step = (struct step){.start_s = start_s, .rate_rps = rate_rps, .distribution = distribution, .cv = cv};
    step_shape(step);
}

static enum distribution parse_distribution(const char *name) {
    for (int i = 0; i < DISTRIBUTIONS; i++)
        if (strcmp(name, distribution_names[i]) == 0) return (enum distribution)i;
    fail_user("unknown distribution '%s'; expected exponential, normal, fixed, zipf, gamma or weibull", name);
}

static bool has_cv(enum distribution distribution) { return distribution == GAMMA || distribution == WEIBULL; }

static void parse_step(struct stream *stream, double start_s, double rate_rps, const char *name, double cv) {
    enum distribution distribution = parse_distribution(name);
    if (has_cv(distribution) && !(cv >= MIN_CV && cv <= MAX_CV))
        fail_user("%s gaps of type %s need a coefficient of variation from %g to %g", name, stream->type, MIN_CV, MAX_CV);
    if (!(rate_rps >= 0.0 && rate_rps <= MAX_RATE_RPS))
        fail_user("rate %g of type %s is not from 0 to %g", rate_rps, stream->type, MAX_RATE_RPS);
    double previous_s = stream->step_count > 0 ? stream->steps[stream->step_count - 1].start_s : 0.0;
    bool first = stream->step_count == 0;
    if (!(first ? start_s == 0.0 : start_s > previous_s && start_s <= MAX_TIME_S))
        fail_user("step at %g s of type %s; steps begin at 0 and ascend", start_s, stream->type);
    stream_add_step(stream, start_s, rate_rps, distribution, has_cv(distribution) ? cv : 1.0);
}

static double parse_share(const struct stream *stream, double share) {
    if (!(share >= 0.0 && share <= 1.0)) fail_user("share %g of type %s is not from 0 to 1", share, stream->type);
    return share;
}

static double parse_time(const struct stream *stream, const char *name, double time_s) {
    if (!(time_s >= MIN_TIME_S && time_s <= MAX_TIME_S))
        fail_user("%s of %g s of type %s; it must be from %g to %g", name, time_s, stream->type, MIN_TIME_S, MAX_TIME_S);
    return time_s;
}

static void parse_clients(struct stream *stream, const struct clients *clients) {
    if (clients->retries > MAX_RETRIES)
        fail_user("%u retries of type %s; the most are %d", clients->retries, stream->type, MAX_RETRIES);
    parse_time(stream, "patience", clients->patience_s);
    parse_time(stream, "back-off", clients->backoff_s);
    parse_share(stream, clients->retry_failed);
    parse_share(stream, clients->retry_refused);
    stream->clients = *clients;
}

static void parse_plan_line(struct plan *plan, char *line, const char *path, int number) {
    char type[128], method[32], url[1024], body[1024], distribution[32];
    double start_s, rate_rps, deadline_s, cv = 0.0;
    struct clients clients;
    struct stream *last = plan->stream_count > 0 ? &plan->streams[plan->stream_count - 1] : NULL;
    if (line[strspn(line, " \t\r\n")] == '\0' || line[0] == '#') return;
    if (sscanf(line, "stream %127s %31s %1023s %1023[^\n]", type, method, url, body) == 4)
        plan_add_stream(plan, type, method, url, body);
    else if (last != NULL && sscanf(line, "step %lf %lf %31s %lf", &start_s, &rate_rps, distribution, &cv) >= 3)
        parse_step(last, start_s, rate_rps, distribution, cv);
    else if (last != NULL && sscanf(line, "deadline %lf", &deadline_s) == 1)
        last->deadline_s = parse_time(last, "deadline", deadline_s);
    else if (last != NULL && sscanf(line, "clients %lf %u %lf %lf %lf", &clients.patience_s, &clients.retries,
                                    &clients.retry_failed, &clients.retry_refused, &clients.backoff_s) == 5)
        parse_clients(last, &clients);
    else
        fail_user("%s:%d: expected 'stream TYPE METHOD PATH BODY', then 'step START_S RATE_RPS DISTRIBUTION [CV]', "
                  "'deadline S' or 'clients PATIENCE_S RETRIES RETRY_FAILED RETRY_REFUSED BACKOFF_S'", path, number);
}

struct plan read_plan(const char *path) {
    FILE *file = fopen(path, "r");
    if (file == NULL) fail_user("plan file '%s': %s", path, strerror(errno));
    struct plan plan = {0};
    char *line = NULL;
    size_t capacity = 0;
    for (int number = 1; getline(&line, &capacity, file) >= 0; number++) parse_plan_line(&plan, line, path, number);
    free(line);
    fclose(file);
    if (plan.stream_count == 0) fail_user("plan file '%s' has no stream", path);
    return plan;
}

static void draw_steps(struct stream *stream, const struct random_bounds *bounds, double duration_s,
                       struct random *random) {
    for (double at_s = 0.0; at_s < duration_s;) {
        enum distribution distribution = (enum distribution)random_below(random, ZIPF + 1);
        double burst_s = random_between(random, bounds->min_burst_s, bounds->max_burst_s);
        double rate_rps = random_between(random, bounds->min_rate_rps, bounds->max_rate_rps);
        stream_add_step(stream, at_s, rate_rps, distribution, 1.0);
        stream_add_step(stream, at_s + burst_s, 0.0, distribution, 1.0);
        at_s += burst_s + random_between(random, bounds->min_backoff_s, bounds->max_backoff_s);
    }
}

struct plan random_plan(const struct random_bounds *bounds, double duration_s, uint64_t seed) {
    struct plan plan = {0};
    plan_add_stream(&plan, "compose", "POST", "/wrk2-api/post/compose", "compose");
    plan_add_stream(&plan, "home_read", "GET", "/wrk2-api/home-timeline/read", "timeline");
    plan_add_stream(&plan, "user_read", "GET", "/wrk2-api/user-timeline/read", "timeline");
    for (size_t i = 0; i < plan.stream_count; i++) {
        struct random random = random_for(seed, FOR_PLAN, i);
        draw_steps(&plan.streams[i], bounds, duration_s, &random);
    }
    return plan;
}

void print_plan(const struct plan *plan, FILE *out) {
    for (size_t i = 0; i < plan->stream_count; i++) {
        const struct stream *stream = &plan->streams[i];
        fprintf(out, "stream %s %s %s %s\n", stream->type, stream->method, stream->path, stream->body_name);
        for (size_t k = 0; k < stream->step_count; k++) {
            const struct step *step = &stream->steps[k];
            const char *name = distribution_names[step->distribution];
            fprintf(out, "step %.17g %.17g %s", step->start_s, step->rate_rps, name);
            if (has_cv(step->distribution)) fprintf(out, " %.17g", step->cv);
            fputc('\n', out);
        }
        const struct clients *clients = &stream->clients;
        if (stream->deadline_s > 0) fprintf(out, "deadline %.17g\n", stream->deadline_s);
        if (clients->patience_s > 0)
            fprintf(out, "clients %.17g %u %.17g %.17g %.17g\n", clients->patience_s, clients->retries,
                    clients->retry_failed, clients->retry_refused, clients->backoff_s);
    }
}

void free_plan(struct plan *plan) {
    for (size_t i = 0; i < plan->stream_count; i++) {
        struct stream *stream = &plan->streams[i];
        free(stream->type), free(stream->method), free(stream->path), free(stream->body_name);
        free(stream->body_bytes), free(stream->steps);
    }
    free(plan->streams);
}
