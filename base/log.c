/* See log.h. Lines on the stream name their level only from warnings up; lines in the file carry date and level. */
#include "base/log.h"
#include "base/buffer.h"
#include "base/clock.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct Log {
    pthread_mutex_t lock;
    LogLevel least, least_stream;
    char prefix[32]; // of lines on the stream
    FILE *stream;    // not owned
    FILE *file;   // owned; NULL where there is none
    bool terminal;
    Buffer status; // what stands on the terminal's last line
};

Log *log_new(LogLevel least, FILE *stream) {
    Log *log = calloc(1, sizeof *log);
    check(log && pthread_mutex_init(&log->lock, NULL) == 0);
    log->least = log->least_stream = least;
    log->stream = stream;
    log->terminal = isatty(fileno(stream));
    return log;
}

bool log_open_file(Log *log, const char *path, Error *error) {
    FILE *file = fopen(path, "ae");
    if (!file) return error_set_errno(error, ERROR_FAILED, "%s: cannot append to the log", path);
    pthread_mutex_lock(&log->lock);
    if (log->file) fclose(log->file);
    log->file = file;
    pthread_mutex_unlock(&log->lock);
    return true;
}

void log_set_stream(Log *log, LogLevel least, const char *prefix) {
    if (!log) return;
    pthread_mutex_lock(&log->lock);
    log->least_stream = least > log->least ? least : log->least;
    snprintf(log->prefix, sizeof log->prefix, "%s", prefix);
    pthread_mutex_unlock(&log->lock);
}

void log_free(Log *log) {
    if (!log) return;
    log_status(log, NULL);
    if (log->file) fclose(log->file);
    pthread_mutex_destroy(&log->lock);
    buffer_free(&log->status);
    free(log);
}

bool log_is_terminal(const Log *log) { return log && log->terminal; }

static size_t terminal_columns(const Log *log) {
    struct winsize window;
    return ioctl(fileno(log->stream), TIOCGWINSZ, &window) == 0 && window.ws_col > 8 ? window.ws_col : 80;
}

// Counts each character as one column; a cut is made between characters.
static void draw_status(Log *log) {
    if (!log->status.size) return;
    size_t columns = terminal_columns(log) - 1, at = 0;
    for (; log->status.data[at]; at++) {
        bool starts = ((unsigned char)log->status.data[at] & 0xC0) != 0x80;
        if (starts && columns-- == 0) break;
    }
    fprintf(log->stream, "\r\033[K%.*s", (int)at, log->status.data);
    fflush(log->stream);
}

static void erase_status(Log *log) {
    if (log->status.size) fputs("\r\033[K", log->stream);
}

void log_status(Log *log, const char *text) {
    if (!log_is_terminal(log)) return;
    pthread_mutex_lock(&log->lock);
    erase_status(log);
    buffer_clear(&log->status);
    if (text) buffer_text(&log->status, text);
    draw_status(log);
    fflush(log->stream);
    pthread_mutex_unlock(&log->lock);
}

void log_write(Log *log, LogLevel level, const char *format, ...) {
    static const char *const levels[] = {"debug", "info", "warning", "error"};
    if (!log || level < log->least) return;
    va_list arguments;
    char date[32], *text = NULL;
    va_start(arguments, format);
    int size = vasprintf(&text, format, arguments);
    va_end(arguments);
    check(size >= 0);
    clock_date(date);
    pthread_mutex_lock(&log->lock);
    if (level >= log->least_stream) {
        erase_status(log);
        bool plain = level < LOG_WARNING;
        fprintf(log->stream, "%s%s%s%s\n", log->prefix, plain ? "" : levels[level], plain ? "" : ": ", text);
        fflush(log->stream);
        draw_status(log);
    }
    if (log->file) {
        fprintf(log->file, "%s %s %s\n", date, levels[level], text);
        fflush(log->file);
    }
    pthread_mutex_unlock(&log->lock);
    free(text);
}
