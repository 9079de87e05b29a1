/* The MPI programs that benches/ranks compares with, without anything of Rankine's:
 * `empty` only initialises and finalises; `ping` is a round trip of 8 bytes between two ranks; `chunk` has one
 * of two ranks ask the other for 256 MiB, and receive them into memory that it has used before.
 * The last two tell in a JSON line how many seconds each round took. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PINGS = 12000, CHUNKS = 12, CHUNK = 256 << 20 }; /* as in main.rs */

static int ascending(const void *a, const void *b) {
    double one = *(const double *)a, other = *(const double *)b;
    return (one > other) - (one < other);
}

/* One rank sends `ask` bytes and the other answers with `answer`, `rounds` times. */
static void measure(const char *what, int rank, int ask, int answer, int rounds, int warm) {
    int longest = ask > answer ? ask : answer;
    char *buffer = malloc(longest);
    double *seconds = malloc(rounds * sizeof *seconds);
    if (!buffer || !seconds) {
        fprintf(stderr, "bare: no memory for %d bytes\n", longest);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    memset(buffer, rank, longest);
    for (int round = 0; round < rounds; round++) {
        double start = MPI_Wtime();
        if (rank == 0) {
            MPI_Send(buffer, ask, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
            MPI_Recv(buffer, answer, MPI_BYTE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(buffer, ask, MPI_BYTE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(buffer, answer, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
        }
        seconds[round] = MPI_Wtime() - start;
    }
    if (rank == 0) {
        qsort(seconds + warm, rounds - warm, sizeof *seconds, ascending);
        printf("{\"what\": \"%s\", \"seconds\": [", what);
        for (int round = warm; round < rounds; round++)
            printf("%s%.9f", round == warm ? "" : ", ", seconds[round]);
        printf("]}\n");
    }
    free(buffer);
    free(seconds);
}

int main(int argc, char **argv) {
    int rank, size;
    const char *what = argc > 1 ? argv[1] : "";
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (strcmp(what, "empty") != 0 && size != 2) {
        fprintf(stderr, "bare: %s wants two ranks, not %d\n", what, size);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    if (strcmp(what, "ping") == 0)
        measure("round trip", rank, 8, 8, PINGS, PINGS / 6);
    else if (strcmp(what, "chunk") == 0)
        measure("chunk", rank, 1, CHUNK, CHUNKS, 2);
    else if (strcmp(what, "empty") != 0) {
        fprintf(stderr, "bare: say empty, ping or chunk\n");
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Finalize();
    return 0;
}
