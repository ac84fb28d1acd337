/* Ends at the speed of C: what pushes into a relay, what pulls from it, and what only connects.
 *
 * One process is one connection. It counts into its slot of a file that the benchmark maps too,
 * so the counts and the relay's processor time are read at the same moment, and an end that
 * hangs shows as a count that stands still. SIGTERM ends it: a pusher finishes the message that
 * it has begun.
 *
 * Protocols: sp (length u64 | payload), zmtp (ZMTP 3.0, NULL), raw (no framing at all).
 * With --own a pusher names its stream and says how many messages it has, and a puller
 * acknowledges: the control frames of docs/reference/wire.md. With --tls everything is inside
 * TLS 1.3; OpenSSL is loaded when it is needed, so no headers are.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 20, DRAIN_EVERY = 256 << 10, PATIENCE_S = 20, CONTROL_BYTES = 21 };
enum { ACK = 1, HELLO = 2, BYE = 3, STREAM = 4, FROM = 5 };
enum protocol { SP, ZMTP, RAW };

struct slot {
    _Atomic uint64_t bytes, messages, ready, acknowledged;
    uint64_t unused[4];
};

struct options {
    enum protocol protocol;
    int pushes, listens, own;
    int port;
    size_t size, batch, ack_bytes;
    uint64_t count;
    long pace_us;
    const char *samples, *file, *tls;
};

struct connection {
    int fd;
    void *ssl;
};

static struct options opt = {.size = 1024, .protocol = SP};
static struct slot *slot;
static volatile sig_atomic_t stopping;

static void stop(int number) { (void)number; stopping = 1; }

static void fail(const char *what)
{
    fprintf(stderr, "generators: %s: %s\n", what, errno ? strerror(errno) : "unexpected");
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* TLS: the few functions of OpenSSL 3 that are needed. */

static struct {
    void *(*method)(void), *(*ctx)(void *), *(*make)(void *);
    int (*chain)(void *, const char *), (*key)(void *, const char *, int);
    int (*authorities)(void *, const char *, const char *);
    void (*verify)(void *, int, void *);
    int (*set_fd)(void *, int), (*connect)(void *), (*accept)(void *);
    int (*read)(void *, void *, int), (*write)(void *, const void *, int), (*shutdown)(void *);
    long (*control)(void *, int, long, void *);
} tls;

static void *symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);
    if (!found) fail(name);
    return found;
}

static void load_tls(void)
{
    void *library = dlopen("libssl.so.3", RTLD_NOW);
    if (!library) fail("libssl.so.3");
    *(void **)&tls.method = symbol(library, "TLS_method");
    *(void **)&tls.ctx = symbol(library, "SSL_CTX_new");
    *(void **)&tls.make = symbol(library, "SSL_new");
    *(void **)&tls.chain = symbol(library, "SSL_CTX_use_certificate_chain_file");
    *(void **)&tls.key = symbol(library, "SSL_CTX_use_PrivateKey_file");
    *(void **)&tls.authorities = symbol(library, "SSL_CTX_load_verify_locations");
    *(void **)&tls.verify = symbol(library, "SSL_CTX_set_verify");
    *(void **)&tls.set_fd = symbol(library, "SSL_set_fd");
    *(void **)&tls.connect = symbol(library, "SSL_connect");
    *(void **)&tls.accept = symbol(library, "SSL_accept");
    *(void **)&tls.read = symbol(library, "SSL_read");
    *(void **)&tls.write = symbol(library, "SSL_write");
    *(void **)&tls.shutdown = symbol(library, "SSL_shutdown");
    *(void **)&tls.control = symbol(library, "SSL_CTX_ctrl");
}

static void secure(struct connection *link)
{
    enum { PEM = 1, PEER_OR_FAIL = 3, MINIMUM_VERSION = 123, TLS_1_3 = 0x0304 };
    char certificate[4096], key[4096], authorities[4096];
    load_tls();
    snprintf(certificate, sizeof certificate, "%s/id.crt", opt.tls);
    snprintf(key, sizeof key, "%s/id.key", opt.tls);
    snprintf(authorities, sizeof authorities, "%s/ca.crt", opt.tls);
    void *ctx = tls.ctx(tls.method());
    tls.control(ctx, MINIMUM_VERSION, TLS_1_3, NULL);
    if (tls.chain(ctx, certificate) != 1 || tls.key(ctx, key, PEM) != 1 ||
        tls.authorities(ctx, authorities, NULL) != 1)
        fail("TLS credentials");
    tls.verify(ctx, PEER_OR_FAIL, NULL);
    link->ssl = tls.make(ctx);
    tls.set_fd(link->ssl, link->fd);
    if ((opt.listens ? tls.accept(link->ssl) : tls.connect(link->ssl)) != 1) fail("TLS handshake");
}

/* Bytes out and in. */

static int write_all(struct connection *link, const uint8_t *data, size_t bytes, int counted)
{
    while (bytes) {
        ssize_t n = link->ssl ? tls.write(link->ssl, data, (int)bytes)
                              : send(link->fd, data, bytes, MSG_NOSIGNAL);
        if (n < 0 && !link->ssl && errno == EINTR) continue;
        if (n <= 0) return -1;
        if (counted) slot->bytes += (uint64_t)n;
        data += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Return bytes, 0 at the end, -1 with EAGAIN if nothing came in time. */
static ssize_t read_some(struct connection *link, uint8_t *data, size_t bytes, int flags)
{
    errno = 0;
    ssize_t n = link->ssl ? tls.read(link->ssl, data, (int)bytes)
                          : recv(link->fd, data, bytes, flags);
    if (n < 0 && errno == EINTR) errno = EAGAIN;
    return n;
}

static void read_exactly(struct connection *link, uint8_t *data, size_t bytes)
{
    uint64_t deadline = now_ns() + PATIENCE_S * 1000000000ull;
    while (bytes) {
        ssize_t n = read_some(link, data, bytes, 0);
        if (n < 0 && errno == EAGAIN && now_ns() < deadline && !stopping) continue;
        if (n <= 0) fail("handshake");
        data += n;
        bytes -= (size_t)n;
    }
}

/* Connections and handshakes. */

static void set_option(int fd, int level, int name, int value)
{
    setsockopt(fd, level, name, &value, sizeof value);
}

static int open_socket(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint64_t deadline = now_ns() + PATIENCE_S * 1000000000ull;
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (!opt.listens) {
            if (!connect(fd, (struct sockaddr *)&address, sizeof address)) return fd;
            if (now_ns() > deadline || stopping) fail("connect");
            close(fd);
            usleep(2000);
            continue;
        }
        set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
        if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1)) fail("listen");
        int accepted = accept(fd, NULL, NULL);
        if (accepted < 0) fail("accept");
        close(fd);
        return accepted;
    }
}

static size_t sp_handshake(uint8_t *out)
{
    memcpy(out, "\0SP\0\0\x50\0\0", 8);
    out[5] = opt.pushes ? 0x50 : 0x51;
    return 8;
}

static size_t zmtp_handshake(uint8_t *out)
{
    static const char greeting[] = "\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL";
    static const char ready[] = "\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PU";
    memset(out, 0, 64);
    memcpy(out, greeting, sizeof greeting - 1);
    memcpy(out + 64, ready, 26);
    memcpy(out + 90, opt.pushes ? "SH" : "LL", 2);
    return 92;
}

static void control_frame(uint8_t *out, uint8_t type, uint64_t number)
{
    uint64_t length = htobe64(13), wire = htobe64(number);
    memcpy(out, &length, 8);
    memcpy(out + 8, "LCLB", 4);
    out[12] = type;
    memcpy(out + 13, &wire, 8);
}

static void send_control(struct connection *link, uint8_t type, uint64_t number)
{
    uint8_t frame[CONTROL_BYTES];
    control_frame(frame, type, number);
    if (write_all(link, frame, sizeof frame, 0)) fail("control frame");
}

/* Prove that the buffer's HELLO was seen, name the stream, ask for acknowledgements. */
static void introduce(struct connection *link)
{
    uint8_t hello[CONTROL_BYTES];
    uint64_t nonce;
    read_exactly(link, hello, sizeof hello);
    if (memcmp(hello + 8, "LCLB", 4) || hello[12] != HELLO) fail("no HELLO");
    memcpy(&nonce, hello + 13, 8);
    send_control(link, HELLO, be64toh(nonce));
    send_control(link, STREAM, (now_ns() * 2654435761u ^ (uint64_t)getpid() << 32) & ~0xffffull);
    send_control(link, FROM, 0);
}

static struct connection dial(void)
{
    uint8_t bytes[512];
    size_t count;
    struct connection link = {.fd = open_socket(opt.port)};
    struct timeval patience = {.tv_usec = 100000};
    set_option(link.fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (opt.tls) secure(&link);
    setsockopt(link.fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (opt.protocol == RAW) return link;
    count = opt.protocol == SP ? sp_handshake(bytes) : zmtp_handshake(bytes);
    if (write_all(&link, bytes, count, 0)) fail("handshake");
    read_exactly(&link, bytes, opt.protocol == SP ? 8 : 64);
    if (opt.protocol == ZMTP) {
        read_exactly(&link, bytes, 2);
        read_exactly(&link, bytes + 2, bytes[1]);
        if (bytes[0] != 4 || memcmp(bytes + 3, "READY", 5)) fail("READY");
    }
    if (opt.own && opt.pushes) introduce(&link);
    if (opt.own && !opt.pushes) send_control(&link, ACK, 0);
    return link;
}

/* Pushing. */

static size_t put_header(uint8_t *out)
{
    uint64_t length = htobe64(opt.size);
    if (opt.protocol == RAW) return 0;
    if (opt.protocol == ZMTP && opt.size < 256) {
        out[0] = 0;
        out[1] = (uint8_t)opt.size;
        return 2;
    }
    if (opt.protocol == ZMTP) *out++ = 2;
    memcpy(out, &length, 8);
    return opt.protocol == ZMTP ? 9 : 8;
}

/* The bytes of `messages` messages as they go over the wire. */
static uint8_t *make_image(size_t messages, size_t *bytes)
{
    uint8_t *image = malloc(messages * (opt.size + 9)), *end = image;
    if (!image) fail("memory");
    for (size_t i = 0; i < messages; i++) {
        end += put_header(end);
        memset(end, (int)('a' + i % 26), opt.size);
        end += opt.size;
    }
    *bytes = (size_t)(end - image);
    return image;
}

/* Take in what the relay says; the last whole ACK of it counts. */
static int hear(struct connection *link, int flags)
{
    static uint8_t heard[64 * CONTROL_BYTES];
    static size_t held;
    ssize_t n = read_some(link, heard + held, sizeof heard - held, flags);
    if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
    held += (size_t)n;
    size_t at = 0;
    for (; opt.own && held - at >= CONTROL_BYTES; at += CONTROL_BYTES) {
        uint64_t number;
        memcpy(&number, heard + at + 13, 8);
        if (heard[at + 12] == ACK) slot->acknowledged = be64toh(number);
    }
    held = opt.own ? held - at : 0;
    memmove(heard, heard + at, held);
    return 1;
}

static void pace(uint64_t start, uint64_t sent)
{
    uint64_t at = start + sent * (uint64_t)opt.pace_us * 1000u;
    struct timespec t = {.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* Say the end and wait until the relay has closed too: unread bytes would turn it into a reset. */
static void part(struct connection *link)
{
    uint64_t deadline = now_ns() + PATIENCE_S * 1000000000ull;
    if (opt.own) send_control(link, BYE, slot->messages);
    if (link->ssl) tls.shutdown(link->ssl);
    shutdown(link->fd, SHUT_WR);
    while (now_ns() < deadline && hear(link, 0) >= 0)
        ;
    if (opt.own && slot->acknowledged != slot->messages) {
        fprintf(stderr, "generators: %llu of %llu messages acknowledged\n",
                (unsigned long long)slot->acknowledged, (unsigned long long)slot->messages);
        exit(3);
    }
}

static int push(void)
{
    struct connection link = dial();
    size_t in_image = opt.batch > opt.size ? opt.batch / (opt.size + 9) : 1;
    size_t header = put_header((uint8_t[16]){0}), bytes, quiet = 0;
    uint8_t *image = make_image(in_image, &bytes);
    uint64_t start = now_ns();
    slot->ready = 1;
    while (!stopping && (!opt.count || slot->messages < opt.count)) {
        if (opt.pace_us) {
            pace(start, slot->messages + 1);
            uint64_t moment = now_ns();
            memcpy(image + header, &moment, 8);
        }
        if (write_all(&link, image, bytes, 1)) break;
        slot->messages += in_image;
        quiet += bytes;
        if (quiet >= DRAIN_EVERY && opt.own && !link.ssl) {
            hear(&link, MSG_DONTWAIT);
            quiet = 0;
        }
    }
    part(&link);
    return 0;
}

/* A file from the page cache, as fast as a socket takes it. */
static int push_file(void)
{
    struct connection link = dial();
    struct stat status;
    int fd = open(opt.file, O_RDONLY);
    if (fd < 0 || fstat(fd, &status)) fail(opt.file);
    slot->ready = 1;
    for (off_t at = 0; !stopping && at < status.st_size;) {
        ssize_t n = sendfile(link.fd, fd, &at, 1 << 20);
        if (n <= 0) break;
        slot->bytes += (uint64_t)n;
    }
    part(&link);
    return 0;
}

/* Pulling. */

struct parser {
    uint64_t body;
    uint8_t header[9];
    size_t held;
    int command;
};

static void message_begins(struct parser *p)
{
    uint64_t length;
    p->held = 0;
    if (opt.protocol == SP) {
        memcpy(&length, p->header, 8);
        p->body = be64toh(length);
    } else {
        memcpy(&length, p->header + 1, 8);
        p->command = p->header[0] & 4;
        p->body = p->header[0] & 2 ? be64toh(length) : p->header[1];
    }
}

static size_t header_bytes(const struct parser *p)
{
    return opt.protocol == SP ? 8 : p->held && !(p->header[0] & 2) ? 2 : 9;
}

static void consume(struct parser *p, const uint8_t *data, size_t bytes)
{
    uint64_t messages = 0, payload = 0;
    if (opt.protocol == RAW) {
        slot->bytes += bytes;
        slot->messages = slot->bytes / opt.size;
        return;
    }
    while (bytes) {
        if (p->body) {
            size_t n = bytes < p->body ? bytes : p->body;
            p->body -= n;
            data += n;
            bytes -= n;
            if (!p->command) payload += n;
        } else {
            p->header[p->held++] = *data++;
            bytes--;
            if (p->held < header_bytes(p)) continue;
            message_begins(p);
        }
        if (!p->body && !p->held) {
            messages += !p->command;
            p->command = 0;
        }
    }
    slot->bytes += payload;
    slot->messages += messages;
}

static int pull(void)
{
    struct connection link = dial();
    struct parser parser = {0};
    uint8_t *memory = malloc(READ_BYTES);
    uint64_t acknowledged = 0, acknowledged_bytes = 0;
    slot->ready = 1;
    for (;;) {
        ssize_t n = read_some(&link, memory, READ_BYTES, 0);
        int nothing = n < 0 && errno == EAGAIN;
        if (n > 0) consume(&parser, memory, (size_t)n);
        if (opt.own && slot->messages > acknowledged &&
            (nothing || slot->bytes - acknowledged_bytes >= opt.ack_bytes)) {
            acknowledged = slot->messages;
            acknowledged_bytes = slot->bytes;
            send_control(&link, ACK, acknowledged);
        }
        if ((n <= 0 && !nothing) || (stopping && nothing)) break;
    }
    return 0;
}

/* How long each message was under way, in nanoseconds. */
static int pull_timed(void)
{
    struct connection link = dial();
    uint8_t *memory = malloc(opt.size + 16);
    size_t header = put_header((uint8_t[16]){0});
    FILE *out = fopen(opt.samples, "wb");
    if (!out) fail(opt.samples);
    slot->ready = 1;
    while (!opt.count || slot->messages < opt.count) {
        size_t held = 0;
        while (held < header + opt.size) {
            ssize_t n = read_some(&link, memory + held, header + opt.size - held, 0);
            if (n < 0 && errno == EAGAIN && !stopping) continue;
            if (n <= 0) goto done;
            held += (size_t)n;
        }
        uint64_t sent, taken = now_ns();
        memcpy(&sent, memory + header, 8);
        taken -= sent;
        fwrite(&taken, sizeof taken, 1, out);
        slot->bytes += opt.size;
        slot->messages++;
    }
done:
    fclose(out);
    return 0;
}

/* Come and go: a pusher brings one message, a puller none. */
static int come_and_go(void)
{
    size_t bytes;
    uint8_t *image = make_image(1, &bytes);
    slot->ready = 1;
    while (!stopping && slot->messages < opt.count) {
        struct connection link = dial();
        if (opt.pushes && write_all(&link, image, bytes, 1)) fail("message");
        shutdown(link.fd, SHUT_WR);
        while (opt.pushes && hear(&link, 0) > 0)
            ;
        close(link.fd);
        slot->messages++;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"protocol", 1, 0, 'p'}, {"port", 1, 0, 'P'},  {"listen", 0, 0, 'l'}, {"size", 1, 0, 's'},
        {"batch", 1, 0, 'b'},    {"own", 0, 0, 'o'},   {"ack", 1, 0, 'a'},    {"count", 1, 0, 'n'},
        {"pace", 1, 0, 'u'},     {"samples", 1, 0, 'S'}, {"file", 1, 0, 'f'}, {"tls", 1, 0, 't'},
        {"counters", 1, 0, 'c'}, {"slot", 1, 0, 'i'},  {0}};
    struct sigaction action = {.sa_handler = stop};
    const char *counters = "";
    long index = 0;
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (c) {
        case 'p': opt.protocol = *optarg == 's' ? SP : *optarg == 'z' ? ZMTP : RAW; break;
        case 'P': opt.port = atoi(optarg); break;
        case 'l': opt.listens = 1; break;
        case 's': opt.size = strtoull(optarg, NULL, 10); break;
        case 'b': opt.batch = strtoull(optarg, NULL, 10); break;
        case 'o': opt.own = 1; break;
        case 'a': opt.ack_bytes = strtoull(optarg, NULL, 10); break;
        case 'n': opt.count = strtoull(optarg, NULL, 10); break;
        case 'u': opt.pace_us = atol(optarg); break;
        case 'S': opt.samples = optarg; break;
        case 'f': opt.file = optarg; break;
        case 't': opt.tls = optarg; break;
        case 'c': counters = optarg; break;
        case 'i': index = atol(optarg); break;
        default: return 2;
        }
    if (optind >= argc) return 2;
    int fd = open(counters, O_RDWR | O_CLOEXEC);
    if (fd < 0) fail("counters");
    struct slot *slots = mmap(NULL, (size_t)(index + 1) * sizeof *slots, PROT_READ | PROT_WRITE,
                              MAP_SHARED, fd, 0);
    if (slots == MAP_FAILED) fail("counters");
    slot = slots + index;
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    opt.pushes = strcmp(argv[optind], "pull") && strcmp(argv[optind], "pull-come-and-go");
    if (strstr(argv[optind], "come-and-go")) return come_and_go();
    if (opt.pushes) return opt.file ? push_file() : push();
    return opt.samples ? pull_timed() : pull();
}
